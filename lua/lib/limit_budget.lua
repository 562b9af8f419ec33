-- limit_budget: at most `limit` units in a calendar period (UTC)
--
-- State: a hash of the period's start in milliseconds and the units spent in it.
--- @include "lib/integers"
--- @include "lib/calendar"

-- Kept for a day past its period, for whoever wants to read what was spent.
local BUDGET_TTL_MARGIN_MS = 86400000

-- A stored period that begins after `now` stays in force: the clock was set back, and spending must not start over.
local function budget_read(key, now, period)
  local stored = redis.call('HMGET', key, 'start', 'spent')
  local stored_start = tonumber(stored[1] or '0')
  local first, past = period_edges(period, math.max(now, stored_start))
  local spent = 0
  if stored_start == first then
    spent = tonumber(stored[2] or '0')
  end
  return first, past, spent
end

local function budget_peek(key, now, cost, limit, period)
  local first, past, spent = budget_read(key, now, period)
  local retry = 0
  if cost > limit then
    retry = -1
  elseif spent + cost > limit then
    retry = past - now
  end
  local reset = 0
  if spent > 0 then
    reset = past - now
  end
  return {
    used = spent,
    remaining = math.max(0, limit - spent),
    retry = retry,
    reset = reset,
    first = first,
    past = past,
    ahead = first > now and first or nil,
  }
end

local function budget_charge(key, now, cost, state)
  redis.call('HSET', key, 'start', decimal(state.first), 'spent', decimal(state.used + cost))
  redis.call('PEXPIRE', key, decimal(state.past - now + BUDGET_TTL_MARGIN_MS))
  return state.past - now
end

-- Less goes back to the period that was charged; to another one nothing is owed. More is spent in the period of now.
local function budget_settle(key, now, charged_at, change, period)
  if change > 0 then
    local first, past, spent = budget_read(key, now, period)
    budget_charge(key, now, change, { first = first, past = past, used = spent })
    return
  end
  local first, _, spent = budget_read(key, charged_at, period)
  if spent > 0 and first == period_edges(period, charged_at) then
    redis.call('HSET', key, 'spent', decimal(math.max(0, spent + change)))
  end
end
