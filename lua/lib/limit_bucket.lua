-- limit_bucket: a token bucket; any t milliseconds admit at most burst + limit * t / window units
--
-- State: "<level> <ms>"; a level below 0 is what was used beyond what was reserved. A unit weighs `window`, so that a
-- millisecond refills exactly `limit`: integers only.
--- @include "lib/integers"

local function limit_bucket()
  local BUCKET_TTL_MARGIN_MS = 6000
  -- What lacks to a full bucket stays below 2^53, with room for what is added to it.
  local BUCKET_MOST_MISSING = 9000000000000000

  local function bucket_level(key, now, limit, capacity)
    local stored = redis.call('GET', key)
    if not stored then
      return capacity, now
    end
    local level, at = string.match(stored, '^(-?%d+) (%d+)$')
    level, at = tonumber(level), tonumber(at)
    if now > at then
      return math.min(capacity, level + (now - at) * limit), now
    end
    return math.min(capacity, level), at
  end

  local function bucket_store(key, level, at, limit, capacity)
    local ttl = ceil_div(capacity - level, limit) + BUCKET_TTL_MARGIN_MS
    redis.call('SET', key, decimal(level) .. ' ' .. decimal(at), 'PX', decimal(ttl))
  end

  local function bucket_peek(spec, admission)
    local now, cost, limit, window, burst = admission.now, spec.cost, spec.limit, spec.window, spec.burst
    local capacity = burst * window
    local level, at = bucket_level(spec.key, now, limit, capacity)
    local retry = 0
    if cost > burst then
      retry = -1
    elseif level < cost * window then
      retry = ceil_div(cost * window - level, limit) + at - now
    end
    local remaining = (level - level % window) / window
    return {
      used = burst - remaining,
      remaining = math.max(0, remaining),
      retry = retry,
      reset = ceil_div(capacity - level, limit) + at - now,
      level = level,
      at = at,
    }
  end

  local function bucket_charge(spec, admission, state)
    local capacity = spec.burst * spec.window
    local level = state.level - spec.cost * spec.window
    bucket_store(spec.key, level, state.at, spec.limit, capacity)
    return ceil_div(capacity - level, spec.limit) + state.at - admission.now
  end

  local function bucket_settle(spec, admission, _, actual)
    local change = actual - spec.cost
    if change == 0 then
      return
    end
    local capacity = spec.burst * spec.window
    local level, at = bucket_level(spec.key, admission.now, spec.limit, capacity)
    local lowest = math.min(0, capacity - BUCKET_MOST_MISSING)
    level = math.max(lowest, math.min(capacity, level - change * spec.window))
    bucket_store(spec.key, level, at, spec.limit, capacity)
  end

  return { peek = bucket_peek, charge = bucket_charge, settle = bucket_settle }
end
