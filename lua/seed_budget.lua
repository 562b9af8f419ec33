-- seed_budget: what was spent of these budgets, told by the ledger, where the server has lost it
--
-- KEYS[1+]  budgets   hashes, see lib/limit_budget
-- ARGV[1]   at        ms since 1970, when the ledger was asked for
-- ARGV[2+]  budgets   two a budget: period (see lib/calendar), units spent in the period around `at`
--
-- Returns  {"seeded", number of budgets}: those that exist keep what they have
-- Writes   every budget that does not exist
-- Flags    deny-oom

--- @include "lib/limit_budget"

local FIRST_BUDGET_ARGUMENT = 2

local budget = limit_budget()
local at = tonumber(ARGV[1])
local seeded = 0
local argument = FIRST_BUDGET_ARGUMENT
for index = 1, #KEYS do
  if redis.call('EXISTS', KEYS[index]) == 0 then
    budget.seed(KEYS[index], ARGV[argument], at, tonumber(ARGV[argument + 1]))
    seeded = seeded + 1
  end
  argument = argument + 2
end
return { 'seeded', seeded }
