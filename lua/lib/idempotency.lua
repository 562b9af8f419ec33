-- idempotency: a write that carries an Idempotency-Key happens once
--
-- State: "<fingerprint of the request>\n<sealed answer>".

-- Returns the reply for a repeated request, nil for a new one or one without a key (empty fingerprint).
local function repeated(key, fingerprint)
  if fingerprint == '' then
    return nil
  end
  local stored = redis.call('GET', key)
  if not stored then
    return nil
  end
  if string.sub(stored, 1, #fingerprint + 1) ~= fingerprint .. '\n' then
    return { 'key_reused' }
  end
  return { 'repeated', string.sub(stored, #fingerprint + 2) }
end

local function remember(key, fingerprint, answer, ttl_ms)
  if fingerprint ~= '' then
    redis.call('SET', key, fingerprint .. '\n' .. answer, 'PX', ttl_ms)
  end
end
