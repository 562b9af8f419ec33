-- limit_concurrency: at most `limit` requests in flight
--
-- State: a sorted set of slots, scored by the millisecond at which their lease ends. One unit takes one slot; settling
-- frees it, and what nobody renews ends with its lease.
--- @include "lib/integers"

local CONCURRENCY_TTL_MARGIN_MS = 6000

-- The first slot of an admission has its id as name.
local function concurrency_slot(id, number)
  if number == 1 then
    return id
  end
  return id .. ' ' .. decimal(number)
end

-- Ended leases stay where they are: whoever only looks must not write.
local function concurrency_peek(key, now, cost, limit, lease)
  local used = redis.call('ZCOUNT', key, '(' .. decimal(now), '+inf')
  local retry = 0
  if cost > limit then
    retry = -1
  elseif used + cost > limit then
    retry = -2
  end
  return {
    used = used,
    remaining = math.max(0, limit - used),
    retry = retry,
    reset = used > 0 and lease or 0,
  }
end

-- Takes the slots, or pushes the end of their lease forward. The set outlives every lease in it, also longer ones; it is
-- given two leases, so that its life must be lengthened once a lease and not at every call.
local function concurrency_hold(key, now, cost, lease, id)
  for number = 1, cost do
    redis.call('ZADD', key, decimal(now + lease), concurrency_slot(id, number))
  end
  if redis.call('PTTL', key) < lease + CONCURRENCY_TTL_MARGIN_MS then
    redis.call('PEXPIRE', key, decimal(2 * lease + CONCURRENCY_TTL_MARGIN_MS))
  end
  return lease
end

local function concurrency_charge(key, now, cost, lease, id)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', decimal(now))
  return concurrency_hold(key, now, cost, lease, id)
end

local function concurrency_end(key, cost, id)
  for number = 1, cost do
    redis.call('ZREM', key, concurrency_slot(id, number))
  end
end
