-- ledger: what was used, by day, API key, rule and model
--
-- State: a hash a day; fields "<metric>:<key id>:<rule id>:<model>", of the metrics r requests, i input tokens, o output
-- tokens, c cached tokens, u cost in nano-USD.
--- @include "lib/integers"

-- Models are named by clients: beyond so many fields a day, new ones are counted together.
local LEDGER_MOST_FIELDS = 20000
local LEDGER_OTHER_MODEL = '(other)'

local LEDGER_METRICS = { 'r:', 'i:', 'o:', 'c:', 'u:' }

-- Amounts of so few digits are summed here: hundreds of them stay below 2^53.
local LEDGER_SUMMED_DIGITS = 13

-- What a call adds to a row; `name` is "<key id>:<rule id>:". It has `sums` once something is counted.
local function ledger_row(key, name, model)
  return { key = key, name = name, model = model }
end

-- Counts the amounts so many times; they are arguments from `first` on, decimal and in the order of LEDGER_METRICS.
local function ledger_count(row, first, times)
  local sums = row.sums or { 0, 0, 0, 0, 0 }
  row.sums = sums
  for index = 1, #LEDGER_METRICS do
    local amount = ARGV[first + index - 1]
    if #amount > LEDGER_SUMMED_DIGITS then
      row.large = row.large or {}
      for _ = 1, times do
        row.large[#row.large + 1] = { metric = LEDGER_METRICS[index], amount = amount }
      end
    elseif amount ~= '0' then
      sums[index] = sums[index] + times * tonumber(amount)
    end
  end
end

-- Of the row that is written: its fields, and how many amounts were added.
local ledger_place, ledger_added

local function ledger_write(row, retention)
  local key, sums, place = row.key, row.sums, row.name .. row.model
  ledger_added = 0
  if redis.call('HEXISTS', key, LEDGER_METRICS[1] .. place) == 0 then
    if redis.call('HLEN', key) >= LEDGER_MOST_FIELDS then
      place = row.name .. LEDGER_OTHER_MODEL
    end
    redis.call('HINCRBY', key, LEDGER_METRICS[1] .. place, '0')
    redis.call('PEXPIRE', key, retention)
  end
  ledger_place = place
  for index = 1, #LEDGER_METRICS do
    if sums[index] > 0 then
      redis.call('HINCRBY', key, LEDGER_METRICS[index] .. place, decimal(sums[index]))
      ledger_added = ledger_added + 1
    end
  end
  for index = 1, row.large and #row.large or 0 do
    redis.call('HINCRBY', key, row.large[index].metric .. place, row.large[index].amount)
    ledger_added = ledger_added + 1
  end
end

-- After a write of the row that failed: what it has added goes again.
local function ledger_take_back(row)
  local steps = {}
  for index = 1, #LEDGER_METRICS do
    if row.sums[index] > 0 then
      steps[#steps + 1] = { metric = LEDGER_METRICS[index], amount = decimal(row.sums[index]) }
    end
  end
  for index = 1, row.large and #row.large or 0 do
    steps[#steps + 1] = row.large[index]
  end
  for index = 1, ledger_added do
    redis.call('HINCRBY', row.key, steps[index].metric .. ledger_place, '-' .. steps[index].amount)
  end
end
