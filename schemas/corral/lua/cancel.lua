-- Cancels one job, exactly.
--
-- ARGV  1 tenant   2 id   3 ending of a job cancelled in the queue, as JSON
--       4 ms to keep its result   5 entries of the results stream   6 most bytes inline there
-- Returns 'cancelled' (it was queued, never starts, and its result is written),
--   'running' (its worker was told; the flag stands should the message be lost),
--   'finished', or 'unknown' (nothing was written).

return cancel(ARGV[1], ARGV[2], ARGV[3],
  {ms = tonumber(ARGV[4]), entries = tonumber(ARGV[5]), inline = tonumber(ARGV[6])})
