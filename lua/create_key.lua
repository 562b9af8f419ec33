-- create_key: add an API key to a tenant
--
-- KEYS[1]  tenant       hash
-- KEYS[2]  key index    hash of key id to digests
-- KEYS[3]  api key      hash, named by the digest of the secret
-- KEYS[4]  idempotency  string
-- ARGV[1]  tenant id    another tenant may have the subdomain by now
-- ARGV[2]  key id
-- ARGV[3]  digest       of the secret
-- ARGV[4]  revision     of the key
-- ARGV[5]  expiry       ms since 1970, or empty
-- ARGV[6]  document     JSON
-- ARGV[7]  fingerprint  of the request, or empty
-- ARGV[8]  answer       sealed, for a repeated request
-- ARGV[9]  ttl          ms; how long a repeated request is recognised
--
-- Returns  {"created"} | {"unknown_tenant"} | {"repeated", answer} | {"key_reused"}
-- Writes   index, key, the tenant's version of its keys, and the idempotency record
-- Flags    deny-oom

--- @include "lib/idempotency"

if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] then
  return { 'unknown_tenant' }
end
local again = repeated(KEYS[4], ARGV[7])
if again then
  return again
end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
redis.call('HSET', KEYS[3], 'status', 'active', 'revision', ARGV[4], 'expires_ms', ARGV[5], 'document', ARGV[6])
redis.call('HSET', KEYS[1], 'keys_version', ARGV[4])
remember(KEYS[4], ARGV[7], ARGV[8], ARGV[9])
return { 'created' }
