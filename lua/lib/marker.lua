-- marker: what is remembered of one admission
--
-- State: "A <ms>" and, parted by spaces, the keys of shadow limits that counted nothing, and "<key>@<ms>" of limits that
-- were charged at another time, because the clock was set back; "S" once it is settled or void.
--- @include "lib/integers"

local MARKER_SETTLED = 'S'

-- To write when these limits admit at `now`.
local function marker_of(now, limits, states)
  local marker = 'A ' .. decimal(now)
  for index = 1, #limits do
    if states[index].retry ~= 0 then
      marker = marker .. ' ' .. limits[index].key
    elseif states[index].ahead then
      marker = marker .. ' ' .. limits[index].key .. '@' .. decimal(states[index].ahead)
    end
  end
  return marker
end

local function marker_time(marker)
  return tonumber(string.match(marker, '^A (%d+)'))
end

-- The time at which a limit was charged: a settlement must find that very charge.
local function marker_charged_at(marker, key)
  local _, stop = string.find(marker, ' ' .. key .. '@', 1, true)
  if stop then
    return tonumber(string.match(marker, '^%d+', stop + 1))
  end
  return marker_time(marker)
end

-- True for a shadow limit that would have refused: it was not charged, so nothing can go back.
local function marker_spared(marker, key)
  return string.find(marker .. ' ', ' ' .. key .. ' ', 1, true) ~= nil
end
