-- validate_key: may this key call this tenant, whatever the limits say?
--
-- KEYS[1]  tenant    hash, as written by the admin API
-- KEYS[2]  rules     hash of rule id to document
-- KEYS[3]  api key   hash, named by the digest of the secret
-- ARGV[1]  version   of the tenant's configuration that the caller knows, or empty
-- ARGV[2]  revision  of the key that the caller knows, or empty
-- ARGV[3]  now       empty; ms since 1970 in tests
--
-- Returns  {"valid", now_ms} | {"unknown_tenant"} | {"invalid_key"} | {"suspended"}
--        | {"stale", version, tenant document, revision, key document, end of its grace in ms or "", rule document…};
--          what is current is empty
-- Writes   nothing
-- Flags    no-writes

--- @include "lib/clock"
--- @include "lib/identity"

local now = server_now(ARGV[3])
local refusal = identify(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2], now)
if refusal then
  return refusal
end
return { 'valid', now }
