-- lease: until when something is held that nobody settles

-- Ends are rounded down to a part of the lease, so that what many requests hold ends in few places, and never too late.
local LEASE_PARTS = 20

local function lease_end(now, lease)
  local step = math.max(1, math.floor(lease / LEASE_PARTS))
  return (now + lease) - (now + lease) % step
end
