-- settle: an admitted request has ended; what it held is free, and what it was charged becomes what it is due
--
-- KEYS[1]   marker    string, named by the id of the admission
-- KEYS[2]   clock     string, the latest time this tenant has seen, ms
-- KEYS[3]   ledger    hash of the day of the admission
-- KEYS[4+]  limits    one a limit that holds or changes
-- ARGV[1]   lease     ms; how long a late or repeated call is recognised
-- ARGV[2]   id        of the admission
-- ARGV[3]   admitted  ms since 1970; empty if the caller never learned whether it was
-- ARGV[4]   now       empty; ms since 1970 in tests
-- ARGV[5]   row       of the ledger, "<key id>:<rule id>:"; empty if there is nothing to record
-- ARGV[6]   model     of the row, or empty
-- ARGV[7]   retention ms, how long the ledger is kept
-- ARGV[8]   requests  to record
-- ARGV[9]   input     tokens
-- ARGV[10]  output    tokens
-- ARGV[11]  cached    tokens
-- ARGV[12]  cost      nano-USD
-- ARGV[13+] limits    seven a limit: six as in lib/limits, the cost as it was charged, and the actual amount: 0 gives
--                     everything back, empty keeps the charge; more than the cost is charged on top
--
-- Returns  {"settled"} | {"settled_before"} | {"not_admitted"}: an admission that arrives later is void
-- Writes   the marker; if it was admitted and not settled yet, also the clock, each limit and the ledger
-- Flags    allow-oom

--- @include "lib/clock"
--- @include "lib/ledger"
--- @include "lib/limits"
--- @include "lib/marker"

local FIRST_LIMIT_KEY = 4
local FIRST_LIMIT_ARGUMENT = 13

local stored = redis.call('MGET', KEYS[1], KEYS[2])
local marker = stored[1]
if marker == MARKER_SETTLED then
  return { 'settled_before' }
end
redis.call('SET', KEYS[1], MARKER_SETTLED, 'PX', ARGV[1])
if not marker and ARGV[3] == '' then
  return { 'not_admitted' }
end

local admission = { id = ARGV[2], now = held_now(stored[2], server_now(ARGV[4])) }
local admitted = tonumber(ARGV[3])
if marker then
  -- else it has ended, was never needed, or a server that took over does not know of it
  admitted, admission.ending = marker_times(marker)
end
advance_clock(KEYS[2], admission.now)
local settled = {}
local argument = FIRST_LIMIT_ARGUMENT
for index = FIRST_LIMIT_KEY, #KEYS do
  local limit = limit_at(KEYS[index], argument)
  local actual = tonumber(ARGV[argument + LIMIT_ARGUMENTS]) or limit.cost
  if not settled[limit.key] and not (marker and marker_spared(marker, limit.key)) then
    local charged_at = marker and marker_charged_at(marker, limit.key, admitted) or admitted
    limit.kind.settle(limit, admission, charged_at, actual)
    settled[limit.key] = true
  end
  argument = argument + LIMIT_ARGUMENTS + 1
end
if ARGV[5] ~= '' then
  ledger_add(KEYS[3], ARGV[5], ARGV[6], ARGV[7], { ARGV[8], ARGV[9], ARGV[10], ARGV[11], ARGV[12] })
end
return { 'settled' }
