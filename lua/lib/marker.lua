-- marker: what is remembered of one admission
--
-- State: "A <admitted ms> <lease end ms>" and, parted by spaces, the keys of shadow limits that counted nothing, and
-- "<key>@<ms>" of limits that were charged at another time, because the clock was set back; "S" once it is settled or void.
--- @include "lib/integers"

local MARKER_SETTLED = 'S'

-- A replica that was stopped for a while and goes on must still find where its holds are; a settlement replaces the marker.
local MARKER_TTL_MS = 3600000

-- To write when these limits admit at `now`; what is held is held until `ending`.
local function marker_of(now, ending, limits, states)
  local marker = 'A ' .. decimal(now) .. ' ' .. decimal(ending)
  for index = 1, #limits do
    if states[index].retry ~= 0 then
      marker = marker .. ' ' .. limits[index].key
    elseif states[index].ahead then
      marker = marker .. ' ' .. limits[index].key .. '@' .. decimal(states[index].ahead)
    end
  end
  return marker
end

local function marker_write(key, marker, lease)
  redis.call('SET', key, marker, 'PX', decimal(lease + MARKER_TTL_MS))
end

-- When it was admitted, and until when it holds something; and whether it tells more than that of any limit.
local function marker_times(marker)
  local admitted, ending, more = string.match(marker, '^A (%d+) (%d+)(.*)$')
  return tonumber(admitted), tonumber(ending), more ~= ''
end

-- The same, with the lease ended later.
local function marker_renewed(marker, ending)
  local admitted, rest = string.match(marker, '^A (%d+) %d+(.*)$')
  return 'A ' .. admitted .. ' ' .. decimal(ending) .. rest
end

-- The time at which a limit was charged: a settlement must find that very charge.
local function marker_charged_at(marker, key, admitted)
  local _, stop = string.find(marker, ' ' .. key .. '@', 1, true)
  if stop then
    return tonumber(string.match(marker, '^%d+', stop + 1))
  end
  return admitted
end

-- True for a shadow limit that would have refused: it was not charged, so nothing can go back.
local function marker_spared(marker, key)
  return string.find(marker .. ' ', ' ' .. key .. ' ', 1, true) ~= nil
end
