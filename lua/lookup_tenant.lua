-- lookup_tenant: which tenant has this subdomain?
--
-- KEYS[1]  tenant  hash, as written by the admin API
--
-- Returns  {"tenant", version, status, document} | {"unknown_tenant"}
-- Writes   nothing
-- Flags    no-writes

local tenant = redis.call('HMGET', KEYS[1], 'version', 'status', 'document')
if not tenant[1] then
  return { 'unknown_tenant' }
end
return { 'tenant', tenant[1], tenant[2], tenant[3] }
