-- limit_log: the exact sliding window; fewer than `limit` units in (now - window, now]
--
-- State: a list of the milliseconds at which a unit was admitted, newest first.
--- @include "lib/integers"

local function limit_log()
  -- Longer than the window by the step that the clock may be held back.
  local LOG_TTL_MARGIN_MS = 6000

  local function log_entry(key, index)
    return tonumber(redis.call('LINDEX', key, decimal(index)))
  end

  -- How many of the list's entries are newer than `edge`. Expired ones are few, at the old end: gallop from there, then halve.
  local function log_live(key, length, edge)
    if length == 0 then
      return 0
    end
    -- under steady traffic one has expired since the request before
    local oldest = redis.call('LRANGE', key, '-2', '-1')
    if tonumber(oldest[#oldest]) > edge then
      return length
    elseif #oldest == 1 or tonumber(oldest[1]) > edge then
      return length - 1
    end
    local expired, step = length - 2, 1
    local live = -1
    while expired > 0 do
      local index = expired - step
      if index < 0 then
        index = 0
      end
      if log_entry(key, index) > edge then
        live = index
        break
      end
      expired = index
      step = step * 2
    end
    while expired - live > 1 do
      local middle = math.floor((expired + live) / 2)
      if log_entry(key, middle) > edge then
        live = middle
      else
        expired = middle
      end
    end
    return expired
  end

  local function log_peek(spec, admission)
    local key, now, cost, limit, window = spec.key, admission.now, spec.cost, spec.limit, spec.window
    local length = redis.call('LLEN', key)
    local used = log_live(key, length, now - window)
    local newest = 0
    if used > 0 then
      newest = log_entry(key, 0)
    end
    local retry = 0
    if cost > limit then
      retry = -1
    elseif used + cost > limit then
      -- so many of the oldest units have to leave
      retry = log_entry(key, limit - cost) + window - now
    end
    local reset = 0
    if used > 0 then
      reset = newest + window - now
    end
    return {
      used = used,
      remaining = math.max(0, limit - used),
      retry = retry,
      reset = reset,
      length = length,
      newest = newest,
      ahead = newest > now and newest or nil,
    }
  end

  -- The list is given two windows, so that its life must be lengthened only by the first unit of each window since 1970,
  -- and while the clock is behind the `newest`.
  local function log_push(key, now, units, newest, window)
    local stamp = math.max(now, newest)
    local entry = decimal(stamp)
    for _ = 1, units do
      redis.call('LPUSH', key, entry)
    end
    if newest > now or math.floor(newest / window) ~= math.floor(now / window) then
      redis.call('PEXPIRE', key, decimal(2 * window + LOG_TTL_MARGIN_MS))
    end
    return stamp
  end

  local function log_charge(spec, admission, state)
    local key, now = spec.key, admission.now
    if state.used == 0 then
      if state.length > 0 then
        redis.call('DEL', key)
      end
    elseif state.length > state.used then
      redis.call('LTRIM', key, '0', decimal(state.used - 1))
    end
    -- after the clock was set back the list must stay sorted, or the search above would miss live units
    return log_push(key, now, spec.cost, state.newest, spec.window) + spec.window - now
  end

  -- Less: units charged at `charged_at` leave the window; those that have left already are not looked for. More: units
  -- join it now, at most as many as fill it.
  local function log_settle(spec, admission, charged_at, actual)
    local key, change = spec.key, actual - spec.cost
    if change < 0 then
      redis.call('LREM', key, decimal(-change), decimal(charged_at))
    elseif change > 0 then
      local newest = tonumber(redis.call('LINDEX', key, '0') or '0')
      log_push(key, admission.now, math.min(change, spec.limit), newest, spec.window)
    end
  end

  return { peek = log_peek, charge = log_charge, settle = log_settle }
end
