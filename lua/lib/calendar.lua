-- calendar: the UTC day or month around a time
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

-- Start and end in milliseconds of the "day" or "month" that contains `now`; the end belongs to the next one.
local function period_edges(period, now)
  local days = math.floor(now / DAY_MS)
  if period == 'day' then
    return days * DAY_MS, (days + 1) * DAY_MS
  end
  local year, month = year_and_month(days)
  local next_year, next_month = year, month + 1
  if next_month == 13 then
    next_year, next_month = year + 1, 1
  end
  return days_of_month_start(year, month) * DAY_MS, days_of_month_start(next_year, next_month) * DAY_MS
end
