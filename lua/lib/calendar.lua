-- calendar: the day, ISO week or month around a time
--
-- A period is the word "day", "week" or "month", in UTC. For another time zone the word goes on with the clock of that zone,
-- as far as it matters around now: "|<offset>" and for each change of the clock "|<change>|<offset from then on>", in their
-- order. Offsets are seconds east of UTC, changes milliseconds since 1970.
--
-- Month arithmetic after Howard Hinnant, "chrono-compatible low-level date algorithms" (civil_from_days and back).

local DAY_MS = 86400000

local function days_of_month_start(year, month)
  if month <= 2 then
    year = year - 1
  end
  local era = math.floor(year / 400)
  local year_of_era = year - era * 400
  local shifted = (month + 9) % 12
  local day_of_year = math.floor((153 * shifted + 2) / 5)
  return era * 146097 + year_of_era * 365 + math.floor(year_of_era / 4) - math.floor(year_of_era / 100) + day_of_year - 719468
end

local function year_and_month(days)
  local shifted = days + 719468
  local era = math.floor(shifted / 146097)
  local day_of_era = shifted - era * 146097
  local year_of_era = math.floor(
    (day_of_era - math.floor(day_of_era / 1460) + math.floor(day_of_era / 36524) - math.floor(day_of_era / 146096)) / 365
  )
  local day_of_year = day_of_era - (365 * year_of_era + math.floor(year_of_era / 4) - math.floor(year_of_era / 100))
  local shifted_month = math.floor((5 * day_of_year + 2) / 153)
  local month = shifted_month < 10 and shifted_month + 3 or shifted_month - 9
  local year = year_of_era + era * 400
  if month <= 2 then
    year = year + 1
  end
  return year, month
end

-- The first day of the "day", "week" or "month" around a day, and that of the next one, in days since 1970: a Thursday.
local function period_days(unit, day)
  if unit == 'day' then
    return day, day + 1
  elseif unit == 'week' then
    local monday = day - (day + 3) % 7
    return monday, monday + 7
  end
  local year, month = year_and_month(day)
  local next_year, next_month = year, month + 1
  if next_month == 13 then
    next_year, next_month = year + 1, 1
  end
  return days_of_month_start(year, month), days_of_month_start(next_year, next_month)
end

-- The same as `period_edges`, by the clock of a zone. A day begins when the clock first shows it: at midnight; where midnight
-- is skipped, at the change that skips it; where midnight comes twice, at the first one.
local function period_edges_in_zone(period, now)
  local unit = string.match(period, '^%a+')
  local offsets, changes = {}, {}
  for offset, change in string.gmatch(period, '|(-?%d+)|?(-?%d*)') do
    offsets[#offsets + 1] = tonumber(offset) * 1000
    changes[#offsets] = tonumber(change)
  end

  local function beginning_of(day)
    for index = 1, #offsets do
      local midnight = day * DAY_MS - offsets[index]
      local beginning = math.max(midnight, changes[index - 1] or midnight)
      if not changes[index] or beginning < changes[index] then
        return beginning
      end
    end
  end

  local shown = 1
  while changes[shown] and changes[shown] <= now do
    shown = shown + 1
  end
  local first, past = period_days(unit, math.floor((now + offsets[shown]) / DAY_MS))
  local ending = beginning_of(past)
  if ending <= now then
    -- the clock was set back over midnight and shows the day before again
    first, past = period_days(unit, past)
    ending = beginning_of(past)
  end
  return beginning_of(first), ending
end

-- Start and end in milliseconds of the period that contains `now`; the end belongs to the next one.
local function period_edges(period, now)
  if string.find(period, '|', 1, true) then
    return period_edges_in_zone(period, now)
  end
  local first, past = period_days(period, math.floor(now / DAY_MS))
  return first * DAY_MS, past * DAY_MS
end
