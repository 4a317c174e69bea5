#!lua flags=allow-oom
-- Cancels one job, exactly.
--
-- ARGV  1 tenant   2 id   3 ending of a job cancelled in the queue, as JSON
--       4 ms to keep its result   5 entries of the results stream   6 most bytes inline there;
--       the first two only if no worker has told yet what its settings are
-- Returns 'cancelled' (it was queued, never starts, and its result is written),
--   'running' (its worker was told; the flag stands should the message be lost),
--   'finished', or 'unknown' (nothing was written).

local told = call('HMGET', K.sweep, 'keep_ms', 'keep_entries')
return cancel(ARGV[1], ARGV[2], ARGV[3], {
  ms = tonumber(told[1] or ARGV[4]),
  entries = tonumber(told[2] or ARGV[5]),
  inline = tonumber(ARGV[6]),
})
