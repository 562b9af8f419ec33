-- identity: which tenant is this, may this key call it, and does the caller know the current configuration?

-- A key is good while it is active, before its end, and before the end of its grace after a rotation.
local function key_is_good(record, now)
  if record[1] ~= 'active' then
    return false
  end
  local expires, grace_ends = record[2], record[3]
  return (not expires or expires == '' or now < tonumber(expires))
    and (not grace_ends or grace_ends == '' or now < tonumber(grace_ends))
end

-- A document that is gone is sent as one that is damaged: empty would say that it has not changed.
local function sent(document)
  local is_there = document and document ~= ''
  return is_there and document or 'null'
end

-- Returns a reply when the request must not go on, else nil and when the key was last seen, in milliseconds.
-- An unchanged document travels as an empty string.
local function identify(tenant_key, rules_key, record_key, known_version, known_revision, now)
  local tenant = redis.call('HMGET', tenant_key, 'version', 'status')
  local version = tenant[1]
  if not version then
    return { 'unknown_tenant' }
  end
  local record = redis.call('HMGET', record_key, 'status', 'expires_ms', 'grace_ends_ms', 'revision', 'used_ms')
  if not key_is_good(record, now) then
    return { 'invalid_key' }
  end
  if tenant[2] ~= 'active' then
    return { 'suspended' }
  end
  local revision = record[4] or ''
  if version == known_version and revision == known_revision then
    return nil, tonumber(record[5] or '0')
  end
  local reply = { 'stale', version, '', revision, '', '' }
  if revision ~= known_revision then
    reply[5] = sent(redis.call('HGET', record_key, 'document'))
    reply[6] = record[3] or ''
  end
  if version ~= known_version then
    reply[3] = sent(redis.call('HGET', tenant_key, 'document'))
    local rules = redis.call('HVALS', rules_key)
    for index = 1, #rules do
      reply[6 + index] = rules[index]
    end
  end
  return reply
end
