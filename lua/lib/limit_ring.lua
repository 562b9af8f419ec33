-- limit_ring: a sliding window for large amounts; at most `limit` units in (now - window, now]
--
-- State: a hash of at most 61 sub-windows of window / 60, named by their number since 1970, with the units charged in
-- each; `total` of all that are stored, and the numbers of the `oldest` and the `newest`. A sub-window counts until its
-- last millisecond has left the window, so that never too few units are seen.
--- @include "lib/integers"

local function limit_ring()
  local RING_PARTS = 60
  -- Longer than the window by the step that the clock may be held back.
  local RING_TTL_MARGIN_MS = 6000

  local function ring_number(time, length)
    return math.floor(time / length)
  end

  -- How long until a sub-window counts no more.
  local function ring_leaves(number, now, window, length)
    return (number + 1) * length - 1 + window - now
  end

  local function ring_units(key, number)
    return tonumber(redis.call('HGET', key, decimal(number)) or '0')
  end

  local function ring_peek(spec, admission)
    local key, now, cost, limit, window = spec.key, admission.now, spec.cost, spec.limit, spec.window
    local length = ceil_div(window, RING_PARTS)
    local current = ring_number(now, length)
    local first = ring_number(now - window + 1, length)
    local stored = redis.call('HMGET', key, 'total', 'oldest', 'newest')
    local used = tonumber(stored[1] or '0')
    local oldest, newest = tonumber(stored[2] or decimal(current)), tonumber(stored[3] or decimal(current))
    local state = { length = length, oldest = oldest, first = first, over = newest < first, place = math.max(current, newest) }
    if state.over then
      used = 0
    else
      for number = oldest, first - 1 do
        used = used - ring_units(key, number)
      end
    end
    if newest > current then
      state.ahead = newest * length
    end
    -- the first charge of a sub-window gives the hash a life that lasts for all of that sub-window
    state.opens = not stored[3] or newest < current
    state.used = used
    state.remaining = math.max(0, limit - used)
    state.reset = used > 0 and ring_leaves(newest, now, window, length) or 0
    state.retry = 0
    if cost > limit then
      state.retry = -1
    elseif used + cost > limit then
      local number, left = math.max(oldest, first), used
      left = left - ring_units(key, number)
      while left + cost > limit and number < newest do
        number = number + 1
        left = left - ring_units(key, number)
      end
      state.retry = ring_leaves(number, now, window, length)
    end
    return state
  end

  local function ring_add(key, now, units, window, state)
    local oldest = math.max(state.oldest, state.first)
    if state.over then
      redis.call('DEL', key)
      oldest = state.place
    else
      for number = state.oldest, state.first - 1 do
        redis.call('HDEL', key, decimal(number))
      end
    end
    local place = decimal(state.place)
    redis.call('HINCRBY', key, place, decimal(units))
    redis.call('HSET', key, 'total', decimal(state.used + units), 'oldest', decimal(oldest), 'newest', place)
    if state.opens or state.ahead then
      redis.call('PEXPIRE', key, decimal(window + state.length + RING_TTL_MARGIN_MS))
    end
    return ring_leaves(state.place, now, window, state.length)
  end

  local function ring_charge(spec, admission, state)
    return ring_add(spec.key, admission.now, spec.cost, spec.window, state)
  end

  -- In the sub-window in which the admission was charged; what is owed on top after that has left, in the current one.
  local function ring_settle(spec, admission, charged_at, actual)
    local key, now, window, change = spec.key, admission.now, spec.window, actual - spec.cost
    if change == 0 then
      return
    end
    local length = ceil_div(window, RING_PARTS)
    local number = ring_number(charged_at, length)
    local stored = redis.call('HGET', key, decimal(number))
    if stored and (change < 0 or ring_leaves(number, now, window, length) > 0) then
      change = math.max(change, -tonumber(stored))
      redis.call('HINCRBY', key, decimal(number), decimal(change))
      redis.call('HINCRBY', key, 'total', decimal(change))
    elseif change > 0 then
      ring_add(key, now, change, window, ring_peek(spec, admission))
    end
  end

  return { peek = ring_peek, charge = ring_charge, settle = ring_settle }
end
