-- create_tenant: take a subdomain that is free, with the tenant's first key
--
-- KEYS[1]   tenant       hash
-- KEYS[2]   key index    hash of key id to digests
-- KEYS[3]   api key      hash, named by the digest of the secret
-- KEYS[4]   idempotency  string
-- ARGV[1]   tenant id
-- ARGV[2]   version      of the new configuration
-- ARGV[3]   document     of the tenant, JSON
-- ARGV[4]   key id
-- ARGV[5]   digest       of the key's secret
-- ARGV[6]   revision     of the key
-- ARGV[7]   expiry       of the key, ms since 1970, or empty
-- ARGV[8]   document     of the key, JSON
-- ARGV[9]   fingerprint  of the request, or empty
-- ARGV[10]  answer       sealed, for a repeated request
-- ARGV[11]  ttl          ms; how long a repeated request is recognised
--
-- Returns  {"created"} | {"subdomain_taken"} | {"repeated", answer} | {"key_reused"}
-- Writes   all four keys when it creates
-- Flags    deny-oom

--- @include "lib/idempotency"

local again = repeated(KEYS[4], ARGV[9])
if again then
  return again
end
if redis.call('EXISTS', KEYS[1]) == 1 then
  return { 'subdomain_taken' }
end
redis.call(
  'HSET', KEYS[1],
  'id', ARGV[1], 'version', ARGV[2], 'status', 'active', 'keys_version', ARGV[6], 'document', ARGV[3]
)
redis.call('HSET', KEYS[2], ARGV[4], ARGV[5])
redis.call('HSET', KEYS[3], 'status', 'active', 'revision', ARGV[6], 'expires_ms', ARGV[7], 'document', ARGV[8])
remember(KEYS[4], ARGV[9], ARGV[10], ARGV[11])
return { 'created' }
