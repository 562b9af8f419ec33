-- write_key: change or revoke a key if nobody else has written since it was read
--
-- KEYS[1]   tenant    hash
-- KEYS[2]   key index hash of key id to digests
-- KEYS[3+]  api key   hashes: the current secret's, then that of a rotated one which may still be in its grace
-- ARGV[1]   key id
-- ARGV[2]   digests   as the writer has read them in the index
-- ARGV[3]   expected  revision that the writer has read
-- ARGV[4]   revision  of the changed key
-- ARGV[5]   status    active or revoked
-- ARGV[6]   expiry    ms since 1970, or empty
-- ARGV[7]   document  JSON
--
-- Returns  {"written"} | {"conflict"} | {"unknown_key"}
-- Writes   every record of the key that still exists
-- Flags    deny-oom

local digests = redis.call('HGET', KEYS[2], ARGV[1])
if not digests then
  return { 'unknown_key' }
end
if digests ~= ARGV[2] or redis.call('HGET', KEYS[3], 'revision') ~= ARGV[3] then
  return { 'conflict' }
end
for index = 3, #KEYS do
  -- a rotated secret's record may have lapsed; writing to it would bring it back without its end
  if redis.call('EXISTS', KEYS[index]) == 1 then
    redis.call('HSET', KEYS[index], 'status', ARGV[5], 'revision', ARGV[4], 'expires_ms', ARGV[6], 'document', ARGV[7])
  end
end
redis.call('HSET', KEYS[1], 'keys_version', ARGV[4])
return { 'written' }
