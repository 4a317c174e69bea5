-- Tells where a job is, and what it waits for. Changes nothing.
--
-- ARGV  1 tenant   2 id
-- Returns {'unknown'}; or {'dead'} (its result has expired, it is kept as a dead letter);
--   or {'finished', 1 if it is kept as a dead letter}
--   or {'running', worker ('' if it is a stock arq one), ms since 1970 of the claim ('' as
--     before), attempt, 1 if the program may have begun, ms until the lease ends,
--     1 if it is to be cancelled, lost leases}
--   or {'queued', ms since 1970 of the earliest start, 1 if that is to come,
--     jobs of the tenant before it, 1 if suspended, 1 if closed out,
--     most jobs at one time (0: any number), jobs running, 1 if a worker takes jobs, lost leases,
--     what the hosts of those that live and take none are short of, with commas}

local MOST_WORKERS = 1000

local tenant, id = ARGV[1], ARGV[2]
local dead = call('ZSCORE', K.dead, id)
if call('EXISTS', K.result .. id) == 1 then
  return {'finished', dead and 1 or 0}
end

local fields = call('HMGET', K.state .. id, 'token', 'claimed', 'starts', 'started', 'cancel', 'lost')
local lost = tonumber(fields[6] or 0)
local lock = call('GET', K.in_progress .. id)
if lock then
  local ours = lock == fields[1]
  local begun = ours and fields[4] == lock
  local starts = tonumber(fields[3] or 0)
  local cancelled = fields[5] or call('ZSCORE', K.abort, id)
  return {'running', ours and string.match(lock, '^(.*):') or '', ours and fields[2] or '',
    begun and starts or starts + 1, begun and 1 or 0, math.max(0, call('PTTL', K.in_progress .. id)),
    cancelled and 1 or 0, lost}
end

local score = call('ZSCORE', K.queue .. tenant, id)
if not score then
  return {dead and 'dead' or 'unknown'}
end
local set = settings(tenant)
local later = tonumber(score) > now
local before = call('ZRANK', K.queue .. tenant, id)
if later then
  -- Those that run stand in the queue too, by the ends of their leases.
  before = before - call('ZCOUNT', K.run .. tenant, '(' .. int(now), '(' .. int(tonumber(score)))
end
local takes_jobs, short_of = 0, {}
for _, worker in ipairs(call('ZRANGEBYSCORE', K.workers, '(' .. int(now), '+inf', 'LIMIT', 0, MOST_WORKERS)) do
  local what = call('GET', K.unready .. worker)
  if not what then
    takes_jobs = 1
    break
  end
  short_of[#short_of + 1] = what
end
return {'queued', int(tonumber(score)), later and 1 or 0, math.max(0, before),
  set.suspended and 1 or 0, set.closed and 1 or 0, int(set.concurrency),
  call('ZCOUNT', K.run .. tenant, '(' .. int(now), '+inf'),
  takes_jobs, lost, takes_jobs == 0 and table.concat(short_of, ',') or ''}
