-- limit_budget: at most `limit` units in a calendar period, spent and held
--
-- Periods are words as in lib/calendar. Those of one budget may tell its zone's clock each time a little further on: only
-- the edges that follow from them are kept.
--
-- State: a hash of the period's `start` in milliseconds, the units `spent` in it, the units `held` for requests in flight,
-- and one field for each end of a lease at which units are held: "c<ms>" if they count as spent from then on, "r<ms>" if
-- they come back. What is held is held across the end of a period; what is settled is spent in the period of that moment.
--- @include "lib/integers"

-- `on_lost` is the first letter of such a field, or nil for a budget that spends at once.
local function limit_budget(on_lost)
  --- @include "lib/calendar"

  -- Kept for a day past its period, for whoever wants to read what was spent.
  local BUDGET_TTL_MARGIN_MS = 86400000

  -- Takes what has lapsed by `now` out of what is held. The fields stay: whoever only looks must not write.
  local function budget_lapse(key, now, period, state)
    local fields = redis.call('HGETALL', key)
    for index = 1, #fields, 2 do
      local letter, ending = string.match(fields[index], '^([cr])(%d+)$')
      if letter and tonumber(ending) <= now then
        local units = tonumber(fields[index + 1])
        state.lapsed[#state.lapsed + 1] = fields[index]
        state.held = state.held - units
        if letter == 'c' and period_edges(period, tonumber(ending)) == state.first then
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
    if start > now then
      -- what the zone's clock shows then, the word of now need not tell
      first = start
    end
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

  local function budget_peek(spec, admission)
    local now, cost, limit = admission.now, spec.cost, spec.limit
    local state = budget_read(spec.key, now, spec.extent)
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

  local function budget_charge(spec, admission, state)
    state.spent = state.spent + spec.cost
    return budget_store(spec.key, admission.now, state)
  end

  -- Less goes back to the period that was charged; to another one nothing is owed. More is spent in the period of now.
  local function budget_settle(spec, admission, charged_at, actual)
    local key, change = spec.key, actual - spec.cost
    if change > 0 then
      local state = budget_read(key, admission.now, spec.extent)
      state.spent = state.spent + change
      budget_store(key, admission.now, state)
    elseif change < 0 then
      local stored = redis.call('HMGET', key, 'start', 'spent')
      if stored[1] and tonumber(stored[1]) == period_edges(spec.extent, charged_at) then
        redis.call('HSET', key, 'spent', decimal(math.max(0, tonumber(stored[2]) + change)))
      end
    end
  end

  -- For a budget that the server has lost: `spent` in the period around `at`.
  local function budget_seed(key, period, at, spent)
    local first, past = period_edges(period, at)
    budget_store(key, at, { first = first, past = past, spent = spent, held = 0, lapsed = {}, opens = true })
  end

  if not on_lost then
    return { peek = budget_peek, charge = budget_charge, settle = budget_settle, seed = budget_seed }
  end

  -- Takes units out of what is held until `ending`, as far as it is there: a server that took over may not know of it.
  local function hold_free(spec, state, ending)
    local field = on_lost .. decimal(ending)
    local units = tonumber(redis.call('HGET', spec.key, field) or '0')
    local freed = math.min(spec.cost, units)
    if freed == units then
      redis.call('HDEL', spec.key, field)
    else
      redis.call('HINCRBY', spec.key, field, decimal(-freed))
    end
    state.held = state.held - freed
  end

  -- Whether units that nobody settled by the end of their lease are among what is spent.
  local function hold_has_lapsed(spec, now, state, ending)
    return on_lost == 'c' and ending <= now and period_edges(spec.extent, ending) == state.first
  end

  local function hold_charge(spec, admission, state)
    redis.call('HINCRBY', spec.key, on_lost .. decimal(admission.ending), decimal(spec.cost))
    state.held = state.held + spec.cost
    return budget_store(spec.key, admission.now, state)
  end

  -- Holds for longer; what had lapsed is held again. Without an `old` end nothing is known of it.
  local function hold_renew(spec, admission, old)
    local now = admission.now
    local state = budget_read(spec.key, now, spec.extent)
    if old and old > now then
      hold_free(spec, state, old)
    elseif old and hold_has_lapsed(spec, now, state, old) then
      state.spent = math.max(0, state.spent - spec.cost)
    end
    hold_charge(spec, admission, state)
  end

  -- Spends `actual` instead of what was held. What lapsed in an earlier period was spent there.
  local function hold_settle(spec, admission, _, actual)
    local now, ending = admission.now, admission.ending
    local state = budget_read(spec.key, now, spec.extent)
    local due = actual
    if ending and ending > now then
      hold_free(spec, state, ending)
    elseif ending and hold_has_lapsed(spec, now, state, ending) then
      due = actual - spec.cost
    elseif ending and on_lost == 'c' then
      due = math.max(0, actual - spec.cost)
    end
    state.spent = math.max(0, state.spent + due)
    budget_store(spec.key, now, state)
  end

  return { peek = budget_peek, charge = hold_charge, settle = hold_settle, renew = hold_renew }
end
