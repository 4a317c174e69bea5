#!lua flags=allow-oom
-- Tells that a worker lives and, if it is the one that sweeps, looks for what nobody told of.
--
-- ARGV  1 worker   2 ms after which the worker counts as gone   3 ms of the sweeper's lease
--       4 ending of a cancelled job, as JSON   5 ending of an expired one
--       6 ms to keep a result   7 entries of a results stream   8 most bytes inline there
--       9 what its host is short of, so that it takes no jobs ('' for nothing)
-- Returns 1 if this worker sweeps, else 0.
--
-- Every step is bounded; the next sweep goes on where this one stopped.

local worker = ARGV[1]
local keep = {ms = tonumber(ARGV[6]), entries = tonumber(ARGV[7]), inline = tonumber(ARGV[8])}
local MOST_QUIET = 20000
local MOST_LATER = 1000
local MOST_ENDED = 100
local MOST_RECONCILED = 200
local GROUP = 200
local MOST_KEYS = 2000
local MOST_LOOKED_AT = 3
local EDGE = 1024

call('ZADD', K.workers, now + tonumber(ARGV[2]), worker)
if ARGV[9] ~= '' then
  call('SET', K.unready .. worker, ARGV[9], 'PX', ARGV[2])
else
  call('DEL', K.unready .. worker)
end
local leader = call('GET', K.sweeper)
if leader and leader ~= worker then
  return 0
end
call('SET', K.sweeper, worker, 'PX', ARGV[3])
-- For clients, whose cancels write results, too.
call('HSET', K.sweep, 'keep_ms', ARGV[6], 'keep_entries', ARGV[7])
call('ZREMRANGEBYSCORE', K.workers, '-inf', now)

local function is_known(tenant)
  return call('SISMEMBER', K.tenants, tenant) == 1
end

local function look(tenant)
  if arm(tenant) then
    hint()
  end
end

-- Tenants that are due: a delay or a lease has ended.
for _, tenant in ipairs(call('ZRANGEBYSCORE', K.later, '-inf', now, 'LIMIT', 0, MOST_LATER)) do
  look(tenant)
end

-- Tenants that wait for something, but whose head is earlier: stock arq has put a job there.
local from = tonumber(call('HGET', K.sweep, 'later') or 0)
local window = call('ZRANGE', K.later, from, from + MOST_LATER - 1, 'WITHSCORES')
for at = 1, #window, 2 do
  local head = call('ZRANGE', K.queue .. window[at], 0, 0, 'WITHSCORES')
  if not head[1] or tonumber(head[2]) < tonumber(window[at + 1]) then
    look(window[at])
  end
end
call('HSET', K.sweep, 'later', #window == MOST_LATER * 2 and from + MOST_LATER or '0')

-- Tenants without jobs, many with one command: hardly one has got any.
local function find(tenants, first, last)
  local queues = {}
  for at = first, last do
    queues[#queues + 1] = K.queue .. tenants[at]
  end
  if #queues == 0 or call('EXISTS', unpack(queues)) == 0 then
    return
  end
  if first == last then
    look(tenants[first])
    return
  end
  local middle = math.floor((first + last) / 2)
  find(tenants, first, middle)
  find(tenants, middle + 1, last)
end
local cursor = call('HGET', K.sweep, 'quiet') or '0'
local seen = 0
repeat
  local page = call('SSCAN', K.quiet, cursor, 'COUNT', 1000)
  cursor = page[1]
  for first = 1, #page[2], GROUP do
    find(page[2], first, math.min(first + GROUP - 1, #page[2]))
  end
  seen = seen + 1000
until cursor == '0' or seen >= MOST_QUIET
call('HSET', K.sweep, 'quiet', cursor)

-- Known tenants that stand nowhere: made known by hand, or the index was lost. Those that
-- wait are put where they belong by their settings, which may have been changed by hand.
local page = call('SSCAN', K.tenants, call('HGET', K.sweep, 'tenants') or '0', 'COUNT', MOST_RECONCILED)
call('HSET', K.sweep, 'tenants', page[1])
for _, tenant in ipairs(page[2]) do
  if call('ZSCORE', K.later, tenant) then
    look(tenant)
  elseif not call('ZSCORE', K.ready, tenant) then
    call('SADD', K.quiet, tenant)
  end
end

-- Whether a job is corral's: text in JSON that calls our function, whatever its size.
local function is_ours(id)
  local key = K.job .. id
  -- Whoever shares this Redis may have put anything there.
  local head = redis.pcall('GETRANGE', key, 0, EDGE - 1)
  if type(head) ~= 'string' or not string.find(head, '^%s*{') then
    return false
  end
  -- A call's argument is what can be long; all else stands before or after it.
  local text = head .. '\n' .. (#head == EDGE and call('GETRANGE', key, -EDGE, -1) or '')
  -- Others' are told by the first of these, which is quick.
  return string.find(text, '"' .. FUNCTION .. '"', 1, true)
    and string.find(text, '"f"%s*:%s*"' .. FUNCTION .. '"') and string.find(text, '"v"%s*:%s*%d')
end

local function has_ours(queue, first, last)
  for _, id in ipairs(call('ZRANGE', queue, first, last)) do
    if is_ours(id) then
      return true
    end
  end
  return false
end

-- The last too: of the first nothing may be left but their ids.
local function is_tenants(queue)
  return has_ours(queue, 0, MOST_LOOKED_AT - 1) or has_ours(queue, -MOST_LOOKED_AT, -1)
end

-- Queues of tenants that nobody knows: stock arq tells nobody. A part of all keys
-- at a time: found at once in a small Redis, and in the end in a large one. Those
-- without a job of ours are other applications'.
local keyspace = call('SCAN', call('HGET', K.sweep, 'keyspace') or '0', 'MATCH', K.queue .. '*',
  'COUNT', MOST_KEYS, 'TYPE', 'zset')
call('HSET', K.sweep, 'keyspace', keyspace[1])
for _, queue in ipairs(keyspace[2]) do
  local tenant = string.match(string.sub(queue, #K.queue + 1), '^[a-z0-9][a-z0-9_-]*$')
  if tenant and #tenant <= 63 and not is_known(tenant) and is_tenants(queue) then
    call('SADD', K.tenants, tenant)
    look(tenant)
  end
end

-- Requests of Job.abort() of stock arq, a part at a time: those that stay, for nobody has
-- claimed their jobs yet, hold up no others. Those that hit nothing are dropped: they would
-- end the next job of the same id.
local past = tonumber(call('HGET', K.sweep, 'abort') or 0)
local aborts = call('ZRANGE', K.abort, past, past + MOST_ENDED - 1)
for _, id in ipairs(aborts) do
  local tenant = call('HGET', K.state .. id, 'tenant') or string.match(id, '^([a-z0-9][a-z0-9_-]*):')
  local lock = call('GET', K.in_progress .. id)
  local foreign = lock and lock ~= call('HGET', K.state .. id, 'token')
  if not foreign then
    local found = tenant and is_known(tenant) and cancel(tenant, id, ARGV[4], keep) or 'unknown'
    -- A job in a queue that its id does not tell: whoever claims it looks here.
    if found ~= 'unknown' or call('EXISTS', K.job .. id) == 0 then
      call('ZREM', K.abort, id)
    end
  end
  if call('ZSCORE', K.abort, id) then
    past = past + 1
  end
end
call('HSET', K.sweep, 'abort', #aborts == MOST_ENDED and past or '0')

-- Jobs that were to have started by now.
for _, id in ipairs(call('ZRANGEBYSCORE', K.deadlines, '-inf', now, 'LIMIT', 0, MOST_ENDED)) do
  local tenant = string.match(id, '^([a-z0-9][a-z0-9_-]*):')
  call('ZREM', K.deadlines, id)
  if tenant and call('EXISTS', K.in_progress .. id) == 0
    and call('ZSCORE', K.queue .. tenant, id) then
    finish_queued(tenant, id, ARGV[5], 'expired', keep)
  end
end

if call('ZCARD', K.ready) > 0 then
  hint()
end
return 1
