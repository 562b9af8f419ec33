-- remove_receipts: a tenant's receipts up to this one are safe elsewhere; may they leave?
--
-- KEYS[1]  receipts   stream
-- KEYS[2]  exported   string, the number of the last one that left this way
-- ARGV[1]  number     of the last one that is safe; 0 for none
-- ARGV[2]  admission  whose receipt it is
-- ARGV[3]  gone       1 if the tenant is no more, so that nothing need stay once its receipts have left; else empty
--
-- Returns  {"removed", how many are left} | {"changed"}: this number is another admission's by now, because the server
--          has lost the one that was read; nothing leaves
-- Writes   both keys when it removes
-- Flags    allow-oom

local FIELDS, ID = 2, 2

local number = ARGV[1]
if number ~= '0' then
  local entry = '0-' .. number
  local last = redis.call('XRANGE', KEYS[1], entry, entry)[1]
  if last then
    if last[FIELDS][ID] ~= ARGV[2] then
      return { 'changed' }
    end
    redis.call('SET', KEYS[2], number)
    redis.call('XTRIM', KEYS[1], 'MINID', '0-' .. string.format('%d', tonumber(number) + 1))
  else
    -- another export has removed it, or too many came behind it: then all before it have left as well
    local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', '1')[1]
    if first and tonumber(string.match(first[1], '%d+$')) < tonumber(number) then
      return { 'changed' }
    end
    if tonumber(redis.call('GET', KEYS[2]) or '0') < tonumber(number) then
      redis.call('SET', KEYS[2], number)
    end
  end
end
local left = redis.call('XLEN', KEYS[1])
if left == 0 and ARGV[3] == '1' then
  redis.call('DEL', KEYS[1], KEYS[2])
end
return { 'removed', left }
