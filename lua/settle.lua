-- settle: requests of a tenant have ended; what they held is free, and what they were charged becomes what is due
--
-- KEYS[1]   clock       string, the latest time this tenant has seen, ms
-- KEYS[2+]  markers     one an admission: a string, named by its id
--           ledgers     one a row: a hash, of the day of the admission
--           receipts    one a row, if there are to be any: a stream, of the tenant whose row it is
--           limits      each that holds or changes, once
-- ARGV[1]   lease       ms; how long a late or repeated call is recognised
-- ARGV[2]   now         empty; ms since 1970 in tests
-- ARGV[3]   retention   ms, how long the ledger is kept
-- ARGV[4]   admissions  how many, at most 64: nobody else is served meanwhile
-- ARGV[5]   rows        how many, of the ledger
-- ARGV[6]   receipts    how many a stream keeps at least; beyond that the oldest are dropped. Empty for no receipts
-- ARGV[7+]  rows        two words each: "<key id>:<rule id>:", and the model or empty
--           limits      six words each, see lib/limits; the cost as it was charged
--           runs        of admissions that are alike, in the order of their markers: how many; their row, counted from
--                       1, 0 for nothing to record; of each the requests, input, output and cached tokens and nano-USD
--                       to record; how many dues each has, empty for those that were admitted for sure, have none and
--                       leave no receipt
--             dues      two words each: the limit, counted from 1, and the actual amount: 0 gives everything back,
--                       empty keeps the charge; more than the cost is charged on top
--             each      two words for each admission, unless the dues are empty: its id, and the ms since 1970 at which
--                       it was admitted, empty if the caller never learned whether it was
--
-- Returns  a word for each admission, in their order: "settled" | "settled_before" | "not_admitted": one that arrives
--          later is void | "failed: <error>": what comes before that error was done, and the same call does no more
-- Writes   the marker of each; of those admitted and not settled yet also the limits and, of one with a row, its
--          receipt; once the clock and each row. What fails has neither a receipt nor a part in its row
-- Flags    allow-oom

--- @include "lib/clock"
--- @include "lib/ledger"
--- @include "lib/limits"
--- @include "lib/marker"

local MOST_ADMISSIONS = 64
local FIRST_MARKER = 2
local ROW_WORDS, DUE_WORDS, EACH_WORDS = 2, 2, 2

local lease, count = ARGV[1], tonumber(ARGV[4])
if count > MOST_ADMISSIONS then
  return error('more admissions than may be settled at once')
end
local stored = redis.call('MGET', unpack(KEYS, 1, count + 1))
local now = held_now(stored[1], server_now(ARGV[2]))

local row_count, most_receipts = tonumber(ARGV[5]), ARGV[6]
local leaves_receipts = most_receipts ~= ''
local argument = 7
local first_row = FIRST_MARKER + count
local first_receipts = first_row + row_count
local first_limit = leaves_receipts and first_receipts + row_count or first_receipts
-- tables are made with a place for what they get if there is one of it: to grow costs more than to be made
local rows, limits = { false }, { false }
for index = 1, row_count do
  rows[index] = ledger_row(KEYS[first_row + index - 1], ARGV[argument], ARGV[argument + 1])
  argument = argument + ROW_WORDS
end
for index = first_limit, #KEYS do
  limits[index - first_limit + 1] = limit_at(KEYS[index], argument)
  argument = argument + LIMIT_ARGUMENTS
end

local function settle_dues(marker, admission, admitted, first, past)
  local settled, tells_more = {}, false
  if marker then
    -- else it has ended, was never needed, or a server that took over does not know of it
    admitted, admission.ending, tells_more = marker_times(marker)
  end
  for due = first, past - 1, DUE_WORDS do
    local limit = limits[tonumber(ARGV[due])]
    if not settled[limit.key] and not (tells_more and marker_spared(marker, limit.key)) then
      local charged_at = tells_more and marker_charged_at(marker, limit.key, admitted) or admitted
      limit.kind.settle(limit, admission, charged_at, tonumber(ARGV[due + 1]) or limit.cost)
      settled[limit.key] = true
    end
  end
end

-- What one key makes impossible must not undo the others: their markers are written.
local function failed(failure)
  if type(failure) == 'table' then
    return 'failed: ' .. failure.err .. ' at user_script:' .. tostring(failure.line)
  end
  return 'failed: ' .. tostring(failure)
end

local several = count > 1
local outcomes, recorded, ended = { false }, several and {}, several and {}
local receipts, settled_ms = leaves_receipts and {}, leaves_receipts and decimal(now)
local place, clock_is_due = 0, true
while place < count do
  local alike, row_place, dues = tonumber(ARGV[argument]), tonumber(ARGV[argument + 1]), tonumber(ARGV[argument + 7])
  local row = rows[row_place]
  local amounts, first_due = argument + 2, argument + 8
  local past_dues = first_due + (dues or 0) * DUE_WORDS
  local settled = 0
  argument = past_dues
  for _ = 1, alike do
    place = place + 1
    local key, marker = KEYS[place + 1], stored[place + 1]
    local id, admitted
    if dues then
      id, admitted = ARGV[argument], ARGV[argument + 1]
      argument = argument + EACH_WORDS
    end
    if marker == MARKER_SETTLED or several and ended[key] then
      outcomes[place] = 'settled_before'
    else
      redis.call('SET', key, MARKER_SETTLED, 'PX', lease)
      if several then
        ended[key] = true
      end
      if not marker and admitted == '' then
        outcomes[place] = 'not_admitted'
      else
        if clock_is_due then
          advance_clock(KEYS[1], now)
          clock_is_due = false
        end
        local done, failure = true, nil
        if past_dues > first_due then
          done, failure = pcall(settle_dues, marker, { id = id, now = now }, tonumber(admitted), first_due, past_dues)
        end
        if done and leaves_receipts and row then
          if admitted == '' then
            admitted = string.match(marker, '^A (%d+)') or '0'
          end
          -- its number is the last one of the stream and one more, also where that one has left
          done, failure = pcall(
            redis.call, 'XADD', KEYS[first_receipts + row_place - 1], 'MAXLEN', '~', most_receipts, '0-*',
            'id', id, 'admitted', admitted, 'settled', settled_ms, 'row', row.name .. row.model,
            'requests', ARGV[amounts], 'input', ARGV[amounts + 1], 'output', ARGV[amounts + 2],
            'cached', ARGV[amounts + 3], 'cost', ARGV[amounts + 4]
          )
          receipts[place] = failure
        end
        if done then
          outcomes[place] = 'settled'
          if several then
            recorded[place] = row
          end
          settled = settled + 1
        else
          outcomes[place] = failed(failure)
        end
      end
    end
  end
  if row and settled > 0 then
    ledger_count(row, amounts, settled)
  end
end

for index = 1, row_count do
  local row = rows[index]
  if row.sums then
    local done, failure = pcall(ledger_write, row, ARGV[3])
    if not done then
      ledger_take_back(row)
    end
    for number = 1, done and 0 or count do
      if not several or recorded[number] == row then
        outcomes[number] = failed(failure)
        if leaves_receipts then
          redis.call('XDEL', KEYS[first_receipts + index - 1], receipts[number])
        end
      end
    end
  end
end
return outcomes
