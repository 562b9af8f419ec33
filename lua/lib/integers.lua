-- integers: exact whole numbers below 2^53, in and out

-- A number as the decimal text that a command takes; Redis itself would print it with %.17g.
local function decimal(number)
  return string.format('%d', number)
end

-- dividend / divisor rounded up, without the rounding of a floating-point division
local function ceil_div(dividend, divisor)
  local sum = dividend + divisor - 1
  return (sum - sum % divisor) / divisor
end
