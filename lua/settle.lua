-- settle: an admitted request has ended; what it held is free, and what it was charged becomes what it is due
--
-- KEYS[1]   marker    string, named by the id of the admission
-- KEYS[2]   clock     string, the latest time this tenant has seen, ms
-- KEYS[3+]  limits    one a limit that holds or changes
-- ARGV[1]   lease     ms; how long a late or repeated call is recognised
-- ARGV[2]   id        of the admission
-- ARGV[3]   now       empty; ms since 1970 in tests
-- ARGV[4+]  limits    seven a limit: six as in lib/limits, the cost as it was charged, and the actual amount: 0 gives
--                     everything back, empty keeps the charge; more than the cost is charged on top
--
-- Returns  {"settled"} | {"settled_before"} | {"not_admitted"}: an admission that arrives later is void
-- Writes   the marker; if it was admitted and not settled yet, also the clock and each limit
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
advance_clock(KEYS[2], admission.now)
local settled = {}
local argument = FIRST_LIMIT_ARGUMENT
for index = FIRST_LIMIT_KEY, #KEYS do
  local limit = limit_at(KEYS[index], argument)
  local actual = tonumber(ARGV[argument + LIMIT_ARGUMENTS]) or limit.cost
  if not settled[limit.key] and not marker_spared(marker, limit.key) then
    settle_limit(limit, admission, marker_charged_at(marker, limit.key), actual - limit.cost)
    settled[limit.key] = true
  end
  argument = argument + LIMIT_ARGUMENTS + 1
end
return { 'settled' }
