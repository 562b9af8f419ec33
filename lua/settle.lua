-- settle: what was charged for an admission and is not owed goes back
--
-- KEYS[1]   marker    string, named by the id of the admission
-- KEYS[2]   clock     string, the latest time this tenant has seen, ms
-- KEYS[3+]  limits    one a limit that gives something back
-- ARGV[1]   lease     ms; how long a late or repeated call is recognised
-- ARGV[2]   id        of the admission
-- ARGV[3]   now       empty; ms since 1970 in tests
-- ARGV[4+]  limits    six a limit, see lib/limits; the cost is the amount that goes back
--
-- Returns  {"settled"} | {"settled_before"} | {"not_admitted"}: an admission that arrives later is void
-- Writes   the marker, and each limit
-- Flags    allow-oom

--- @include "lib/clock"
--- @include "lib/limits"
--- @include "lib/marker"

local FIRST_LIMIT_KEY = 3
local FIRST_LIMIT_ARGUMENT = 4

local marker = redis.call('GET', KEYS[1])
if marker == MARKER_SETTLED then
  return { 'settled_before' }
end
redis.call('SET', KEYS[1], MARKER_SETTLED, 'PX', ARGV[1])
if not marker then
  return { 'not_admitted' }
end

local admission = { id = ARGV[2], now = held_now(KEYS[2], server_now(ARGV[3])) }
local admitted_at = marker_time(marker)
local refunded = {}
local argument = FIRST_LIMIT_ARGUMENT
for index = FIRST_LIMIT_KEY, #KEYS do
  local limit = limit_at(KEYS[index], argument)
  if limit.cost > 0 and not refunded[limit.key] and not marker_spared(marker, limit.key) then
    refund_limit(limit, admission, admitted_at)
    refunded[limit.key] = true
  end
  argument = argument + LIMIT_ARGUMENTS
end
return { 'settled' }
