-- clock: the one time that a script decides by
--- @include "lib/integers"

-- A clock that steps back by no more than this is held until it has caught up, so that no window opens again.
local MAX_HELD_STEP_MS = 5000
local CLOCK_TTL_MS = '60000'

-- Milliseconds since 1970. `override` is empty but in tests.
local function server_now(override)
  if override ~= '' then
    return tonumber(override)
  end
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- The same, but never earlier than what this tenant has seen, unless the clock was set back by more than the held step.
-- `seen` is what the tenant's clock says, false for nothing.
local function held_now(seen, now)
  local last = tonumber(seen or '0')
  if last > now and last - now <= MAX_HELD_STEP_MS then
    return last
  end
  return now
end

local function advance_clock(clock_key, now)
  redis.call('SET', clock_key, decimal(now), 'PX', CLOCK_TTL_MS)
end
