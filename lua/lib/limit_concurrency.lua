-- limit_concurrency: at most `limit` requests in flight
--
-- State: a sorted set of slots, scored by the millisecond at which their lease ends. One unit takes one slot; settling
-- frees it, and what nobody renews ends with its lease.
--- @include "lib/integers"

local function limit_concurrency()
  local CONCURRENCY_TTL_MARGIN_MS = 6000

  -- The first slot of an admission has its id as name.
  local function concurrency_slot(id, number)
    if number == 1 then
      return id
    end
    return id .. ' ' .. decimal(number)
  end

  -- Ended leases stay where they are: whoever only looks must not write.
  local function concurrency_peek(spec, admission)
    local cost, limit = spec.cost, spec.limit
    local used = redis.call('ZCOUNT', spec.key, '(' .. decimal(admission.now), '+inf')
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
      reset = used > 0 and admission.lease or 0,
    }
  end

  -- Takes the slots, or pushes the end of their lease forward. The set outlives every lease in it, also longer ones; it is
  -- given two leases, so that its life must be lengthened once a lease and not at every call.
  local function concurrency_renew(spec, admission)
    local key, lease = spec.key, admission.lease
    for number = 1, spec.cost do
      redis.call('ZADD', key, decimal(admission.now + lease), concurrency_slot(admission.id, number))
    end
    if redis.call('PTTL', key) < lease + CONCURRENCY_TTL_MARGIN_MS then
      redis.call('PEXPIRE', key, decimal(2 * lease + CONCURRENCY_TTL_MARGIN_MS))
    end
    return lease
  end

  local function concurrency_charge(spec, admission)
    redis.call('ZREMRANGEBYSCORE', spec.key, '-inf', decimal(admission.now))
    return concurrency_renew(spec, admission)
  end

  local function concurrency_settle(spec, admission)
    for number = 1, spec.cost do
      redis.call('ZREM', spec.key, concurrency_slot(admission.id, number))
    end
  end

  return {
    peek = concurrency_peek,
    charge = concurrency_charge,
    settle = concurrency_settle,
    renew = concurrency_renew,
  }
end
