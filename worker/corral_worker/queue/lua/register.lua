#!lua flags=allow-oom
-- Makes tenants known.
--
-- ARGV  tenants
-- Returns how many nobody knew.

local new = 0
for _, tenant in ipairs(ARGV) do
  new = new + call('SADD', K.tenants, tenant)
end
return new
