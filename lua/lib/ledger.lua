-- ledger: what was used, by day, API key, rule and model
--
-- State: a hash a day; fields "<metric>:<key id>:<rule id>:<model>", of the metrics r requests, i input tokens, o output
-- tokens, c cached tokens, u cost in nano-USD.

-- Models are named by clients: beyond so many fields a day, new ones are counted together.
local LEDGER_MOST_FIELDS = 20000
local LEDGER_OTHER_MODEL = '(other)'

-- `row` is "<key id>:<rule id>:"; the amounts are decimal strings in the order of LEDGER_METRICS.
local LEDGER_METRICS = { 'r:', 'i:', 'o:', 'c:', 'u:' }

local function ledger_add(key, row, model, retention, amounts)
  if redis.call('HEXISTS', key, LEDGER_METRICS[1] .. row .. model) == 0 then
    if redis.call('HLEN', key) >= LEDGER_MOST_FIELDS then
      model = LEDGER_OTHER_MODEL
    end
    redis.call('HINCRBY', key, LEDGER_METRICS[1] .. row .. model, '0')
    redis.call('PEXPIRE', key, retention)
  end
  for index = 1, #LEDGER_METRICS do
    if amounts[index] ~= '0' then
      redis.call('HINCRBY', key, LEDGER_METRICS[index] .. row .. model, amounts[index])
    end
  end
end
