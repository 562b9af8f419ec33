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
--
-- Returns  {"written"} | {"conflict"} | {"unknown_tenant"} | {"repeated", answer} | {"key_reused"}
-- Writes   the rules, the tenant's version, and the idempotency record
-- Flags    deny-oom

--- @include "lib/idempotency"

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
if ARGV[4] == '' then
  redis.call('HDEL', KEYS[2], ARGV[3])
else
  redis.call('HSET', KEYS[2], ARGV[3], ARGV[4])
end
redis.call('HSET', KEYS[1], 'version', ARGV[2])
remember(KEYS[3], ARGV[5], ARGV[6], ARGV[7])
return { 'written' }
