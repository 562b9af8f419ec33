-- renew: a request is still in flight, so what it holds stays held
--
-- KEYS[1]   marker    string, named by the id of the admission
-- KEYS[2]   clock     string, the latest time this tenant has seen, ms
-- KEYS[3+]  limits    one a limit that holds something for this admission
-- ARGV[1]   lease     ms, from now
-- ARGV[2]   id        of the admission
-- ARGV[3]   admitted  when it was, ms since 1970
-- ARGV[4]   now       empty; ms since 1970 in tests
-- ARGV[5+]  limits    six a limit, see lib/limits
--
-- Returns  {"renewed"} | {"settled_before"}
-- Writes   unless it is settled: the marker and each limit, also where a server that took over knows nothing of them
-- Flags    allow-oom

--- @include "lib/clock"
--- @include "lib/lease"
--- @include "lib/limits"
--- @include "lib/marker"

local FIRST_LIMIT_KEY = 3
local FIRST_LIMIT_ARGUMENT = 5

local stored = redis.call('MGET', KEYS[1], KEYS[2])
local marker = stored[1]
if marker == MARKER_SETTLED then
  return { 'settled_before' }
end

local lease = tonumber(ARGV[1])
local admission = { id = ARGV[2], now = held_now(stored[2], server_now(ARGV[4])), lease = lease }
admission.ending = lease_end(admission.now, lease)
local held_until
if marker then
  local _, ending = marker_times(marker)
  held_until = ending
  marker = marker_renewed(marker, admission.ending)
else
  marker = marker_of(tonumber(ARGV[3]), admission.ending, {}, {})
end
marker_write(KEYS[1], marker, lease)

local argument = FIRST_LIMIT_ARGUMENT
for index = FIRST_LIMIT_KEY, #KEYS do
  local limit = limit_at(KEYS[index], argument)
  if limit.kind.renew and not marker_spared(marker, limit.key) then
    limit.kind.renew(limit, admission, held_until)
  end
  argument = argument + LIMIT_ARGUMENTS
end
return { 'renewed' }
