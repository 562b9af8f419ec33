-- rate_limit: do these limits have room, all of them?
--
-- KEYS[1]   clock     string, the latest time this tenant has seen, ms
-- KEYS[2+]  limits    one a limit, in the order of the arguments
-- ARGV[1]   now       empty; ms since 1970 in tests
-- ARGV[2+]  limits    six a limit, see lib/limits; only of kinds that hold nothing
--
-- Returns  {"admitted", now_ms, five integers a limit} | {"limited", now_ms, five integers a limit}
-- Writes   only when it admits: the clock and every limit
-- Flags    deny-oom

--- @include "lib/clock"
--- @include "lib/limits"

local now = held_now(redis.call('GET', KEYS[1]), server_now(ARGV[1]))
local admission = { now = now }
local limits, states, refused = peek_limits(2, 2, admission, false)
if refused then
  return append_peeked({ 'limited', now }, states)
end
advance_clock(KEYS[1], now)
return charge_limits({ 'admitted', now }, limits, states, admission)
