-- peek: what would these limits say if a request came now?
--
-- KEYS[1]   clock     string, the latest time this tenant has seen, ms
-- KEYS[2+]  limits    one a limit, in the order of the arguments
-- ARGV[1]   lease     ms, that the request would have
-- ARGV[2]   now       empty; ms since 1970 in tests
-- ARGV[3+]  limits    six a limit, see lib/limits
--
-- Returns  {"peeked", now_ms, five integers a limit}: before the request is counted
-- Writes   nothing
-- Flags    no-writes

--- @include "lib/clock"
--- @include "lib/limits"

local now = held_now(KEYS[1], server_now(ARGV[2]))
local _, states = peek_limits(2, 3, { id = '', now = now, lease = tonumber(ARGV[1]) }, false)
return append_peeked({ 'peeked', now }, states)
