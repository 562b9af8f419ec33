-- limit_budget: at most `limit` units in a calendar period (UTC), spent and held
--
-- State: a hash of the period's `start` in milliseconds, the units `spent` in it, the units `held` for requests in flight,
-- and one field for each end of a lease at which units are held: "c<ms>" if they count as spent from then on, "r<ms>" if
-- they come back. What is held is held across the end of a period; what is settled is spent in the period of that moment.
--- @include "lib/integers"
--- @include "lib/calendar"

-- Kept for a day past its period, for whoever wants to read what was spent.
local BUDGET_TTL_MARGIN_MS = 86400000

local BUDGET_ON_LOST = { budget_charge = 'c', budget_release = 'r' }

-- Takes what has lapsed by `now` out of what is held. The fields stay: whoever only looks must not write.
local function budget_lapse(key, now, period, state)
  local fields = redis.call('HGETALL', key)
  for index = 1, #fields, 2 do
    local on_lost, ending = string.match(fields[index], '^([cr])(%d+)$')
    if on_lost and tonumber(ending) <= now then
      local units = tonumber(fields[index + 1])
      state.lapsed[#state.lapsed + 1] = fields[index]
      state.held = state.held - units
      if on_lost == 'c' and period_edges(period, tonumber(ending)) == state.first then
        state.spent = state.spent + units
      end
    end
  end
end

-- A stored period that begins after `now` stays in force: the clock was set back, and spending must not start over.
local function budget_read(key, now, period)
  local stored = redis.call('HMGET', key, 'start', 'spent', 'held')
  local start = tonumber(stored[1] or '0')
  local first, past = period_edges(period, math.max(now, start))
  local state = { first = first, past = past, spent = 0, held = tonumber(stored[3] or '0'), lapsed = {} }
  state.missing = not stored[1]
  state.opens = start ~= first or first > now
  if start == first then
    state.spent = tonumber(stored[2] or '0')
  end
  if state.held > 0 then
    budget_lapse(key, now, period, state)
  end
  return state
end

local function budget_peek(key, now, cost, limit, period)
  local state = budget_read(key, now, period)
  local used = state.spent + state.held
  state.used = used
  state.remaining = math.max(0, limit - used)
  state.reset = used > 0 and state.past - now or 0
  state.ahead = state.first > now and state.first or nil
  state.retry = 0
  if cost > limit then
    state.retry = -1
  elseif state.spent + cost > limit then
    state.retry = state.past - now
  elseif used + cost > limit then
    -- only requests in flight stand in the way
    state.retry = -2
  end
  return state
end

local function budget_store(key, now, state)
  local spent, held = decimal(state.spent), decimal(state.held)
  redis.call('HSET', key, 'start', decimal(state.first), 'spent', spent, 'held', held)
  for index = 1, #state.lapsed do
    redis.call('HDEL', key, state.lapsed[index])
  end
  if state.opens then
    redis.call('PEXPIRE', key, decimal(state.past - now + BUDGET_TTL_MARGIN_MS))
  end
  return state.past - now
end

local function budget_charge(key, now, cost, state)
  state.spent = state.spent + cost
  return budget_store(key, now, state)
end

local function budget_hold(key, now, cost, state, on_lost, ending)
  redis.call('HINCRBY', key, on_lost .. decimal(ending), decimal(cost))
  state.held = state.held + cost
  return budget_store(key, now, state)
end

-- Takes units out of what is held until `ending`, as far as it is there: a server that took over may not know of it.
local function budget_free(key, cost, state, on_lost, ending)
  local field = on_lost .. decimal(ending)
  local units = tonumber(redis.call('HGET', key, field) or '0')
  local freed = math.min(cost, units)
  if freed == units then
    redis.call('HDEL', key, field)
  else
    redis.call('HINCRBY', key, field, decimal(-freed))
  end
  state.held = state.held - freed
end

-- Whether units that nobody settled by the end of their lease are among what is spent.
local function budget_has_lapsed(now, period, state, on_lost, ending)
  return on_lost == 'c' and ending <= now and period_edges(period, ending) == state.first
end

-- Holds for longer; what had lapsed is held again. Without an `old` end nothing is known of it.
local function budget_renew(key, now, cost, period, on_lost, old, ending)
  local state = budget_read(key, now, period)
  if old and old > now then
    budget_free(key, cost, state, on_lost, old)
  elseif old and budget_has_lapsed(now, period, state, on_lost, old) then
    state.spent = math.max(0, state.spent - cost)
  end
  budget_hold(key, now, cost, state, on_lost, ending)
end

-- Spends `actual` instead of what was held until `ending`. What lapsed in an earlier period was spent there.
local function budget_settle_hold(key, now, cost, actual, period, on_lost, ending)
  local state = budget_read(key, now, period)
  local due = actual
  if ending and ending > now then
    budget_free(key, cost, state, on_lost, ending)
  elseif ending and budget_has_lapsed(now, period, state, on_lost, ending) then
    due = actual - cost
  elseif ending and on_lost == 'c' then
    due = math.max(0, actual - cost)
  end
  state.spent = math.max(0, state.spent + due)
  budget_store(key, now, state)
end

-- Less goes back to the period that was charged; to another one nothing is owed. More is spent in the period of now.
local function budget_settle(key, now, charged_at, change, period)
  if change > 0 then
    budget_charge(key, now, change, budget_read(key, now, period))
    return
  end
  local stored = redis.call('HMGET', key, 'start', 'spent')
  if stored[1] and tonumber(stored[1]) == period_edges(period, charged_at) then
    redis.call('HSET', key, 'spent', decimal(math.max(0, tonumber(stored[2]) + change)))
  end
end
