-- limits: every limit of a request, all or nothing
--
-- Six arguments a limit: kind, cost, limit, window in ms (log, ring, bucket; 0 for concurrency) or period (budget, see
-- lib/calendar), burst (bucket) or "1" for a budget whose count is asked for where it is missing, shadow ("1" or "0"). Kinds
-- are log, ring, bucket, concurrency and three of one state: budget spends at once; budget_charge and budget_release hold
-- until the request is settled, and say what becomes of units that nobody settles.
--
-- Five integers a limit in the reply: refuses (1 or 0), used, remaining, retry_ms, reset_ms; retry_ms -1 says never, -2
-- that it depends on requests in flight.
--
-- `admission` has the time `now`, and where something can be held `id`, the milliseconds of a `lease` and its `ending`. A
-- state has used, remaining, retry, reset and what its kind wants to know again; `ahead` if a charge is placed later than
-- now, because the clock was set back.
--- @include "lib/integers"
--- @include "lib/lease"

local LIMIT_ARGUMENTS = 6

local kinds = {}

-- What is to be done for limits of a kind: peek, charge, settle, and renew where something is held. It is made when the first
-- limit of the kind is met, because a server makes every function of a script anew at each call, and those that make a kind
-- are no exception: so each is pasted where it is called.
local function kind_of(name)
  local kind = kinds[name]
  if kind then
    return kind
  elseif name == 'log' then
    --- @include "lib/limit_log"
    kind = limit_log()
  elseif name == 'ring' then
    --- @include "lib/limit_ring"
    kind = limit_ring()
  elseif name == 'bucket' then
    --- @include "lib/limit_bucket"
    kind = limit_bucket()
  elseif name == 'concurrency' then
    --- @include "lib/limit_concurrency"
    kind = limit_concurrency()
  elseif name == 'budget' or name == 'budget_charge' or name == 'budget_release' then
    --- @include "lib/limit_budget"
    kind = limit_budget(name == 'budget_charge' and 'c' or name == 'budget_release' and 'r' or nil)
  else
    return error('unknown kind of limit: ' .. name)
  end
  kinds[name] = kind
  return kind
end

-- The limit of a key, from its arguments. A window is a number, the period of a budget is not.
local function limit_at(key, first)
  local extent = ARGV[first + 3]
  return {
    key = key,
    kind = kind_of(ARGV[first]),
    cost = tonumber(ARGV[first + 1]),
    limit = tonumber(ARGV[first + 2]),
    extent = extent,
    window = tonumber(extent),
    burst = tonumber(ARGV[first + 4]),
    shadow = ARGV[first + 5] == '1',
  }
end

-- Phase 1: reads. Returns the limits, their states, whether one that is no shadow refuses, and the places of budgets whose
-- count must be asked for, if any. `charged` says that the request was counted before, so that only the present state is wanted.
local function peek_limits(first_key, first_argument, admission, charged)
  local limits, states, refused = {}, {}, false
  local unseeded
  local argument = first_argument
  for index = first_key, #KEYS do
    local limit = limit_at(KEYS[index], argument)
    if limit.kind.renew and not admission.id then
      return error('a limit that holds something needs an admission that can be settled')
    end
    local state = limit.kind.peek(limit, admission)
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
      state.reset = resets[limit.key] or limit.kind.charge(limit, admission, state)
      resets[limit.key] = state.reset
      state.used = state.used + limit.cost
      state.remaining = state.remaining - limit.cost
    end
  end
  return append_peeked(reply, states)
end
