-- admit: may this request of a tenant pass?
--
-- KEYS[1]   tenant    hash, as written by the admin API
-- KEYS[2]   rules     hash of rule id to document
-- KEYS[3]   api key   hash, named by the digest of the secret
-- KEYS[4]   marker    string, named by the id of this admission
-- KEYS[5]   clock     string, the latest time this tenant has seen, ms
-- KEYS[6+]  limits    one a limit, in the order of the arguments
-- ARGV[1]   version   of the tenant's configuration that the caller knows, or empty
-- ARGV[2]   revision  of the key that the caller knows, or empty
-- ARGV[3]   lease     ms; how long what the request holds stays held
-- ARGV[4]   id        of this admission
-- ARGV[5]   now       empty; ms since 1970 in tests
-- ARGV[6+]  limits    six a limit, see lib/limits
--
-- Returns  {"admitted", now_ms, five integers a limit}
--        | {"replayed", admitted_at_ms, five integers a limit}: this admission was decided before and counted then
--        | {"limited", now_ms, five integers a limit}
--        | {"unseeded", now_ms, place…}: the counts of these limits, from 1, are missing; seed_budget, then ask again
--        | {"settled"}: this admission was cancelled before it arrived
--        | {"unknown_tenant"} | {"invalid_key"} | {"suspended"}
--        | {"stale", version, tenant document, revision, key document, end of its grace in ms or "", rule document…};
--          what is current is empty
-- Writes   only when it admits: marker, clock, every limit, and once a minute when the key was last used
-- Flags    deny-oom

--- @include "lib/clock"
--- @include "lib/identity"
--- @include "lib/lease"
--- @include "lib/limits"
--- @include "lib/marker"

local FIRST_LIMIT_KEY = 6
local FIRST_LIMIT_ARGUMENT = 6
local LAST_USE_PRECISION_MS = 60000

local now = server_now(ARGV[5])
local refusal, last_use = identify(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2], now)
if refusal then
  return refusal
end

local limited = #KEYS >= FIRST_LIMIT_KEY
local limits, states, admission = {}, {}, {}
if limited then
  local stored = redis.call('MGET', KEYS[4], KEYS[5])
  local marker = stored[1]
  now = held_now(stored[2], now)
  local lease = tonumber(ARGV[3])
  admission = { id = ARGV[4], now = now, lease = lease, ending = lease_end(now, lease) }
  if marker == MARKER_SETTLED then
    return { 'settled' }
  elseif marker then
    local _, seen = peek_limits(FIRST_LIMIT_KEY, FIRST_LIMIT_ARGUMENT, admission, true)
    local admitted = marker_times(marker)
    return append_peeked({ 'replayed', admitted }, seen)
  end
  local refused, unseeded
  limits, states, refused, unseeded = peek_limits(FIRST_LIMIT_KEY, FIRST_LIMIT_ARGUMENT, admission, false)
  if unseeded then
    local reply = { 'unseeded', now }
    for index = 1, #unseeded do
      reply[index + 2] = unseeded[index]
    end
    return reply
  elseif refused then
    return append_peeked({ 'limited', now }, states)
  end
  marker_write(KEYS[4], marker_of(now, admission.ending, limits, states), lease)
  advance_clock(KEYS[5], now)
end
if now - last_use >= LAST_USE_PRECISION_MS then
  redis.call('HSET', KEYS[3], 'used_ms', decimal(now))
end
return charge_limits({ 'admitted', now }, limits, states, admission)
