-- write_rule: create, replace or delete a rule if nobody else has written since the tenant was read
--
-- KEYS[1]  tenant       hash
-- KEYS[2]  rules        hash of rule id to document
-- KEYS[3]  idempotency  string
-- ARGV[1]  expected     version that the writer has read
-- ARGV[2]  version      of the new configuration
-- ARGV[3]  rule id
-- ARGV[4]  document     JSON; empty deletes the rule
-- ARGV[5]  fingerprint  of the request, or empty
-- ARGV[6]  answer       sealed, for a repeated request
-- ARGV[7]  ttl          ms; how long a repeated request is recognised
-- ARGV[8]  max_rules    of a tenant; an edit is taken in any case
-- ARGV[9]  max_bytes    of their documents together; a document that does not grow is taken in any case
--
-- Returns  {"written"} | {"conflict"} | {"unknown_tenant"} | {"full"} | {"repeated", answer} | {"key_reused"}
-- Writes   the rules, the tenant's version, and the idempotency record
-- Flags    deny-oom

--- @include "lib/idempotency"

-- admit reads all rules of a tenant at once, and a replica compiles them
local function is_full(rules, id, document, max_rules, max_bytes)
  local stored = redis.call('HGETALL', rules)
  local bytes, before = #document, -1
  for i = 1, #stored, 2 do
    if stored[i] == id then
      before = #stored[i + 1]
    else
      bytes = bytes + #stored[i + 1]
    end
  end
  if before < 0 and #stored / 2 >= max_rules then
    return true
  end
  return bytes > max_bytes and #document > before
end

local again = repeated(KEYS[3], ARGV[5])
if again then
  return again
end
local version = redis.call('HGET', KEYS[1], 'version')
if not version then
  return { 'unknown_tenant' }
end
if version ~= ARGV[1] then
  return { 'conflict' }
end
if ARGV[4] ~= '' and is_full(KEYS[2], ARGV[3], ARGV[4], tonumber(ARGV[8]), tonumber(ARGV[9])) then
  return { 'full' }
end
if ARGV[4] == '' then
  redis.call('HDEL', KEYS[2], ARGV[3])
else
  redis.call('HSET', KEYS[2], ARGV[3], ARGV[4])
end
redis.call('HSET', KEYS[1], 'version', ARGV[2])
remember(KEYS[3], ARGV[5], ARGV[6], ARGV[7])
return { 'written' }
