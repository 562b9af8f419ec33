-- peek: what would these limits say if a request came now?
--
-- KEYS[1]   clock     string, the latest time this tenant has seen, ms
-- KEYS[2+]  limits    one a limit, in the order of the arguments
-- ARGV[1]   lease     ms, that the request would have
-- ARGV[2]   now       empty; ms since 1970 in tests
-- ARGV[3+]  limits    six a limit, see lib/limits
--
-- Returns  {"peeked", now_ms, five integers a limit, place…}: before the request is counted, and the places, from 1, of
--          limits whose counts are missing, which admit would ask for
-- Writes   nothing
-- Flags    no-writes

--- @include "lib/clock"
--- @include "lib/limits"

local now = held_now(redis.call('GET', KEYS[1]), server_now(ARGV[2]))
local _, states, _, unseeded = peek_limits(2, 3, { id = '', now = now, lease = tonumber(ARGV[1]) }, false)
local reply = append_peeked({ 'peeked', now }, states)
for index = 1, #(unseeded or {}) do
  reply[#reply + 1] = unseeded[index]
end
return reply
