-- limits: every limit of a request, all or nothing
--
-- Six arguments a limit: kind, cost, limit, window in ms (log, ring, bucket; 0 for concurrency) or period (budget), burst
-- (bucket) or "1" for a budget whose count is asked for where it is missing, shadow ("1" or "0"). Kinds are log, ring,
-- bucket, concurrency and three of one state: budget spends at once; budget_charge and budget_release hold until the
-- request is settled, and say what becomes of units that nobody settles.
--
-- Five integers a limit in the reply: refuses (1 or 0), used, remaining, retry_ms, reset_ms; retry_ms -1 says never, -2
-- that it depends on requests in flight.
--
-- `admission` has the time `now`, and where something can be held `id`, the milliseconds of a `lease` and its `ending`. A
-- state has `ahead` if a charge is placed later than now, because the clock was set back.
--- @include "lib/limit_log"
--- @include "lib/limit_ring"
--- @include "lib/limit_bucket"
--- @include "lib/limit_budget"
--- @include "lib/limit_concurrency"
--- @include "lib/lease"

local LIMIT_ARGUMENTS = 6

local function limit_at(key, first)
  local kind = ARGV[first]
  local limit = {
    key = key,
    kind = kind,
    cost = tonumber(ARGV[first + 1]),
    limit = tonumber(ARGV[first + 2]),
    burst = tonumber(ARGV[first + 4]),
    shadow = ARGV[first + 5] == '1',
  }
  limit.on_lost = BUDGET_ON_LOST[kind]
  if kind == 'budget' or limit.on_lost then
    limit.period = ARGV[first + 3]
  else
    limit.window = tonumber(ARGV[first + 3])
  end
  return limit
end

local function peek_limit(limit, admission)
  local now = admission.now
  if limit.kind == 'log' then
    return log_peek(limit.key, now, limit.cost, limit.limit, limit.window)
  elseif limit.kind == 'ring' then
    return ring_peek(limit.key, now, limit.cost, limit.limit, limit.window)
  elseif limit.kind == 'bucket' then
    return bucket_peek(limit.key, now, limit.cost, limit.limit, limit.window, limit.burst)
  elseif limit.kind == 'budget' or (limit.on_lost and admission.id) then
    return budget_peek(limit.key, now, limit.cost, limit.limit, limit.period)
  elseif limit.kind == 'concurrency' and admission.id then
    return concurrency_peek(limit.key, now, limit.cost, limit.limit, admission.lease)
  end
  return error('unknown kind of limit: ' .. limit.kind)
end

local function charge_limit(limit, admission, state)
  local now = admission.now
  if limit.kind == 'log' then
    return log_charge(limit.key, now, limit.cost, limit.window, state)
  elseif limit.kind == 'ring' then
    return ring_charge(limit.key, now, limit.cost, limit.window, state)
  elseif limit.kind == 'bucket' then
    return bucket_charge(limit.key, now, limit.cost, limit.limit, limit.window, limit.burst, state)
  elseif limit.kind == 'concurrency' then
    return concurrency_charge(limit.key, now, limit.cost, admission.lease, admission.id)
  elseif limit.on_lost then
    return budget_hold(limit.key, now, limit.cost, state, limit.on_lost, admission.ending)
  end
  return budget_charge(limit.key, now, limit.cost, state)
end

-- Pushes the end of the lease forward on what a limit holds for an admission, so far until `old`.
local function hold_limit(limit, admission, old)
  local now = admission.now
  if limit.kind == 'concurrency' then
    concurrency_hold(limit.key, now, limit.cost, admission.lease, admission.id)
  elseif limit.on_lost then
    budget_renew(limit.key, now, limit.cost, limit.period, limit.on_lost, old, admission.ending)
  end
end

-- Ends what a limit holds for an admission and changes what it was charged at `charged_at` to the actual amount.
local function settle_limit(limit, admission, charged_at, actual)
  local now = admission.now
  local change = actual - limit.cost
  if limit.kind == 'concurrency' then
    concurrency_end(limit.key, limit.cost, admission.id)
  elseif limit.on_lost then
    budget_settle_hold(limit.key, now, limit.cost, actual, limit.period, limit.on_lost, admission.ending)
  elseif change == 0 then
    return
  elseif limit.kind == 'log' then
    log_settle(limit.key, now, charged_at, change, limit.limit, limit.window)
  elseif limit.kind == 'ring' then
    ring_settle(limit.key, now, charged_at, change, limit.limit, limit.window)
  elseif limit.kind == 'bucket' then
    bucket_settle(limit.key, now, change, limit.limit, limit.window, limit.burst)
  else
    budget_settle(limit.key, now, charged_at, change, limit.period)
  end
end

-- Phase 1: reads. Returns the limits, their states, whether one that is no shadow refuses, and the places of budgets whose
-- count must be asked for, if any. `charged` says that the request was counted before, so that only the present state is wanted.
local function peek_limits(first_key, first_argument, admission, charged)
  local limits, states, refused = {}, {}, false
  local unseeded
  local argument = first_argument
  for index = first_key, #KEYS do
    local limit = limit_at(KEYS[index], argument)
    local state = peek_limit(limit, admission)
    if charged then
      state.retry = 0
    end
    limits[#limits + 1] = limit
    states[#states + 1] = state
    if state.retry ~= 0 and not limit.shadow then
      refused = true
    end
    if state.missing and limit.burst == 1 then
      unseeded = unseeded or {}
      unseeded[#unseeded + 1] = #limits
    end
    argument = argument + LIMIT_ARGUMENTS
  end
  return limits, states, refused, unseeded
end

local function append_peeked(reply, states)
  local size = #reply
  for index = 1, #states do
    local state = states[index]
    reply[size + 1] = state.retry ~= 0 and 1 or 0
    reply[size + 2] = state.used
    reply[size + 3] = state.remaining
    reply[size + 4] = state.retry
    reply[size + 5] = state.reset
    size = size + 5
  end
  return reply
end

-- Phase 2: writes. A shadow limit that would have refused counts nothing, as if it had. Limits with one key count once.
local function charge_limits(reply, limits, states, admission)
  local resets = {}
  for index = 1, #limits do
    local limit, state = limits[index], states[index]
    if state.retry == 0 then
      state.reset = resets[limit.key] or charge_limit(limit, admission, state)
      resets[limit.key] = state.reset
      state.used = state.used + limit.cost
      state.remaining = state.remaining - limit.cost
    end
  end
  return append_peeked(reply, states)
end
