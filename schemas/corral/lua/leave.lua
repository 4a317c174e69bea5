-- Takes a consumer out of its group, unless it holds entries: they would be nobody's.
--
-- ARGV  1 stream   2 group   3 consumer
-- Returns 1 if it is out, 0 if it stays.

-- The stream, and its groups with it, may have expired.
local held = redis.pcall('XPENDING', ARGV[1], ARGV[2], '-', '+', 1, ARGV[3])
if held.err then
  return 1
end
if #held > 0 then
  return 0
end
call('XGROUP', 'DELCONSUMER', ARGV[1], ARGV[2], ARGV[3])
return 1
