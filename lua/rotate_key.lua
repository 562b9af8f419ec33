-- rotate_key: give a key a new secret; the old one works until its grace ends
--
-- KEYS[1]   tenant       hash
-- KEYS[2]   key index    hash of key id to digests
-- KEYS[3]   api key      hash of the new secret
-- KEYS[4]   api key      hash of the secret that is replaced
-- KEYS[5]   idempotency  string
-- KEYS[6+]  api key      hash of one replaced before, which ends at once
-- ARGV[1]   key id
-- ARGV[2]   digests      as the writer has read them in the index
-- ARGV[3]   expected     revision that the writer has read
-- ARGV[4]   revision     of the changed key
-- ARGV[5]   status       active or revoked
-- ARGV[6]   expiry       ms since 1970, or empty
-- ARGV[7]   document     JSON
-- ARGV[8]   digests      for the index: new and replaced
-- ARGV[9]   grace        ms; 0 ends the replaced secret at once
-- ARGV[10]  fingerprint  of the request, or empty
-- ARGV[11]  answer       sealed, for a repeated request
-- ARGV[12]  ttl          ms; how long a repeated request is recognised
-- ARGV[13]  now          empty; ms since 1970 in tests
--
-- Returns  {"rotated"} | {"conflict"} | {"unknown_key"} | {"repeated", answer} | {"key_reused"}
-- Writes   index, the records of the key, the tenant's version of its keys, and the idempotency record
-- Flags    deny-oom

--- @include "lib/clock"
--- @include "lib/idempotency"

local again = repeated(KEYS[5], ARGV[10])
if again then
  return again
end
local digests = redis.call('HGET', KEYS[2], ARGV[1])
if not digests then
  return { 'unknown_key' }
end
local replaced = redis.call('HMGET', KEYS[4], 'revision', 'used_ms')
if digests ~= ARGV[2] or replaced[1] ~= ARGV[3] then
  return { 'conflict' }
end
redis.call('HSET', KEYS[3], 'status', ARGV[5], 'revision', ARGV[4], 'expires_ms', ARGV[6], 'document', ARGV[7])
if replaced[2] then
  redis.call('HSET', KEYS[3], 'used_ms', replaced[2])
end
for index = 6, #KEYS do
  redis.call('DEL', KEYS[index])
end
local grace = tonumber(ARGV[9])
if grace > 0 then
  local ends = decimal(server_now(ARGV[13]) + grace)
  redis.call('HSET', KEYS[4], 'revision', ARGV[4], 'expires_ms', ARGV[6], 'document', ARGV[7], 'grace_ends_ms', ends)
  redis.call('PEXPIRE', KEYS[4], ARGV[9])
else
  redis.call('DEL', KEYS[4])
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[8])
redis.call('HSET', KEYS[1], 'keys_version', ARGV[4])
remember(KEYS[5], ARGV[10], ARGV[11], ARGV[12])
return { 'rotated' }
