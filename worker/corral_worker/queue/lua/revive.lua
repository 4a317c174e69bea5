#!lua flags=allow-oom
-- Puts a job that was given up back on its queue, as if it had never been tried.
--
-- ARGV  1 id   2 ms in which it must start ('' for any time)
-- Returns 'revived'; or 'unknown' (it is no dead letter), 'gone' (its payload has expired),
--   'taken' (another job has its id): then nothing was changed.

local id = ARGV[1]
if not call('ZSCORE', K.dead, id) then
  return 'unknown'
end
local tenant = call('HGET', K.death .. id, 'tenant')
  or string.match(id, '^([a-z0-9][a-z0-9_-]*):')
if not tenant or call('EXISTS', K.dead_job .. id) == 0 then
  return 'gone'
end
if call('EXISTS', K.job .. id, K.in_progress .. id) > 0 or call('ZSCORE', K.queue .. tenant, id) then
  return 'taken'
end
-- Its old result would count as the new one's.
call('DEL', K.result .. id, K.state .. id, K.retry .. id, K.death .. id)
call('ZREM', K.abort, id)
call('ZREM', K.dead, id)
call('RENAME', K.dead_job .. id, K.job .. id)
call('PERSIST', K.job .. id)
call('ZADD', K.queue .. tenant, now, id)
if ARGV[2] ~= '' then
  call('ZADD', K.deadlines, now + tonumber(ARGV[2]), id)
end
call('SADD', K.tenants, tenant)
if arm(tenant) then
  hint()
end
return 'revived'
