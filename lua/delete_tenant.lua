-- delete_tenant: remove a tenant with its rules and keys if nobody else has written since they were read
--
-- KEYS[1]   tenant     hash
-- KEYS[2]   rules      hash
-- KEYS[3]   key index  hash
-- KEYS[4+]  api key    every key record
-- ARGV[1]   expected   version of the configuration that the writer has read
-- ARGV[2]   expected   version of the keys that the writer has read
--
-- Returns  {"deleted"} | {"conflict"} | {"unknown_tenant"}
-- Writes   deletes all of KEYS; limits and markers age out by themselves
-- Flags    allow-oom

local versions = redis.call('HMGET', KEYS[1], 'version', 'keys_version')
if not versions[1] then
  return { 'unknown_tenant' }
end
if versions[1] ~= ARGV[1] or versions[2] ~= ARGV[2] then
  return { 'conflict' }
end
for index = 1, #KEYS do
  redis.call('DEL', KEYS[index])
end
return { 'deleted' }
