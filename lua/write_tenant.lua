-- write_tenant: replace a tenant's document if nobody else has written since it was read
--
-- KEYS[1]  tenant    hash
-- ARGV[1]  expected  version that the writer has read
-- ARGV[2]  version   of the new configuration
-- ARGV[3]  status    active or suspended
-- ARGV[4]  document  JSON
--
-- Returns  {"written"} | {"conflict"} | {"unknown_tenant"}
-- Writes   the tenant
-- Flags    deny-oom

local version = redis.call('HGET', KEYS[1], 'version')
if not version then
  return { 'unknown_tenant' }
end
if version ~= ARGV[1] then
  return { 'conflict' }
end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'status', ARGV[3], 'document', ARGV[4])
return { 'written' }
