-- marker: what is remembered of one admission
--
-- State: "A <ms>" and the keys of shadow limits that counted nothing, parted by spaces; "S" once it is settled or void.
--- @include "lib/integers"

local MARKER_SETTLED = 'S'

-- To write when these limits admit at `now`.
local function marker_of(now, limits, states)
  local marker = 'A ' .. decimal(now)
  for index = 1, #limits do
    if states[index].retry ~= 0 then
      marker = marker .. ' ' .. limits[index].key
    end
  end
  return marker
end

local function marker_time(marker)
  return tonumber(string.match(marker, '^A (%d+)'))
end

-- True for a shadow limit that would have refused: it was not charged, so nothing can go back.
local function marker_spared(marker, key)
  return string.find(marker .. ' ', ' ' .. key .. ' ', 1, true) ~= nil
end
