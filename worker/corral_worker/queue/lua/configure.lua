#!lua flags=allow-oom
-- Changes the settings of a tenant, or those of tenants that have none of their own.
--
-- ARGV  1 tenant ('' for the defaults)   2 'set' or 'remove' (all of them)
--       3 number of settings to unset, then their names, then name and value of each to set
-- Returns 1 if there were settings before, else 0.
--
-- A tenant with settings is a known one, though each of them be unset.

local tenant, verb, unset = ARGV[1], ARGV[2], tonumber(ARGV[3])
local key = tenant == '' and K.defaults or K.tenant .. tenant
local before = call('EXISTS', key)

if verb == 'remove' then
  call('DEL', key)
else
  for at = 4, 3 + unset do
    call('HDEL', key, ARGV[at])
  end
  for at = 4 + unset, #ARGV, 2 do
    call('HSET', key, ARGV[at], ARGV[at + 1])
  end
  if tenant ~= '' then
    call('HSET', key, 'known', '1')
    call('SADD', K.tenants, tenant)
  end
end
-- What was put off by the old settings may be claimed now. Changed defaults
-- are found by the next sweeps.
if tenant ~= '' and call('SISMEMBER', K.tenants, tenant) == 1 and arm(tenant) then
  hint()
end
return before
