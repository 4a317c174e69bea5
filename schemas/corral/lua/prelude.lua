-- In front of every script. The loader puts VERSION and FUNCTION, the envelope's,
-- in front of this, and replaces what begins with K and a dot by names of corral.keys.
--
-- Times are ms of Redis' own clock; virtual times are microseconds of service
-- over weight, whole numbers. A tenant that has jobs is in exactly one of
--   ready  a job can be claimed now and the tenant is below its cap
--   later  nothing to claim before the score: a delayed job, or the end of the
--          first lease if the tenant is at its cap or all its jobs are leased
-- and one without jobs is in `quiet`. `arm` keeps it so.
--
-- The loader makes the script that follows the function `main`, and calls
-- `flush` after it.

local call = redis.call

local MOST_HINTS = 64
local FIRST_ESTIMATE = 100
local LOOK_AGAIN_AT_SUSPENDED = 60000
local MOST_DEAD = 10000
local MOST_INLINE = 16384

local clock_time = call('TIME')
local now = clock_time[1] * 1000 + math.floor(clock_time[2] / 1000)

-- A number as text. Redis does it by itself, and quicker, for whole ones handed to a command.
local function int(number)
  return string.format('%.0f', number)
end

local known_settings = {}
local default_settings
local SETTINGS = {'weight', 'concurrency', 'depth', 'payload_bytes', 'suspended'}

-- A cap of 0 is none. What is no number counts as not set.
local function settings(tenant)
  local found = known_settings[tenant]
  if found then
    return found
  end
  if not default_settings then
    default_settings = call('HMGET', K.defaults, 'unknown', unpack(SETTINGS))
  end
  local own = call('HMGET', K.tenant .. tenant, unpack(SETTINGS))
  local function value(index, fallback)
    return tonumber(own[index] or '') or tonumber(default_settings[index + 1] or '') or fallback
  end
  found = {
    weight = math.min(1000, math.max(0.001, value(1, 1))),
    concurrency = value(2, 0),
    depth = value(3, 0),
    payload_bytes = value(4, 0),
    suspended = value(5, 0) ~= 0,
    closed = default_settings[1] == 'closed' and call('EXISTS', K.tenant .. tenant) == 0,
  }
  known_settings[tenant] = found
  return found
end

-- What a script changes of these is written once, at its end: see `flush`.
local vts, changed = {}, {}
local estimates, learned = {}, {}
local clock, clock_changed
local hinted = false
local there = {}

-- Whether there is anything at a key; asked once.
local function exists(key)
  if there[key] == nil then
    there[key] = call('EXISTS', key) == 1
  end
  return there[key]
end

-- Wakes a worker, at the script's end.
local function hint()
  hinted = true
end

local function vt_of(tenant)
  local vt = vts[tenant]
  if not vt then
    vt = tonumber(call('HGET', K.vt, tenant) or 0)
    vts[tenant] = vt
  end
  return vt
end

local function set_vt(tenant, vt)
  vts[tenant] = vt
  changed[tenant] = true
end

local function get_clock()
  clock = clock or tonumber(call('GET', K.clock) or 0)
  return clock
end

local function set_clock(vt)
  clock = vt
  clock_changed = true
end

local function flush()
  local hash, scores, tenants = {}, {}, 0
  for tenant in pairs(changed) do
    local vt = vts[tenant]
    hash[#hash + 1], hash[#hash + 2] = tenant, vt
    scores[#scores + 1], scores[#scores + 2] = vt, tenant
    if #hash == 1000 then
      call('HSET', K.vt, unpack(hash))
      call('ZADD', K.ready, 'XX', unpack(scores))
      hash, scores = {}, {}
    end
  end
  if #hash > 0 then
    call('HSET', K.vt, unpack(hash))
    call('ZADD', K.ready, 'XX', unpack(scores))
  end
  for tenant in pairs(learned) do
    call('HSET', K.estimate, tenant, estimates[tenant])
  end
  if clock_changed then
    call('SET', K.clock, clock)
  end
  if hinted and call('LLEN', K.wake) < MOST_HINTS then
    call('RPUSH', K.wake, '1')
  end
end

-- Where a tenant enters that was away: no credit is banked, none is owed.
local function entry()
  local first = call('ZRANGE', K.ready, 0, 0, 'WITHSCORES')
  if first[2] then
    -- The score may be about to change.
    return math.min(get_clock(), vts[first[1]] or tonumber(first[2]))
  end
  return get_clock()
end

local function park(tenant, at)
  call('ZREM', K.ready, tenant)
  call('ZADD', K.later, at, tenant)
  return false
end

-- Puts a tenant where it belongs; true if a job of it can be claimed now.
local function arm(tenant)
  local run = K.run .. tenant
  local head = call('ZRANGE', K.queue .. tenant, 0, 0, 'WITHSCORES')
  if not head[1] then
    call('ZREM', K.ready, tenant)
    call('ZREM', K.later, tenant)
    call('SADD', K.quiet, tenant)
    return false
  end
  local ready = call('ZSCORE', K.ready, tenant)
  if not ready then
    call('SREM', K.quiet, tenant)
  end
  local set = settings(tenant)
  if set.suspended or set.closed then
    return park(tenant, now + LOOK_AGAIN_AT_SUSPENDED)
  end
  if set.concurrency > 0 then
    call('ZREMRANGEBYSCORE', run, '-inf', now)
    if call('ZCARD', run) >= set.concurrency then
      local first = call('ZRANGE', run, 0, 0, 'WITHSCORES')
      return park(tenant, tonumber(first[2]))
    end
  end
  if tonumber(head[2]) > now then
    return park(tenant, tonumber(head[2]))
  end
  if not ready then
    call('ZREM', K.later, tenant)
    local vt = math.max(entry(), vt_of(tenant))
    if vt ~= vt_of(tenant) then
      set_vt(tenant, vt)
    end
    call('ZADD', K.ready, vt, tenant)
  end
  return true
end

-- Charges a tenant for ms of service; negative ms give back what was estimated too high.
local function charge(tenant, ms)
  if ms ~= 0 then
    set_vt(tenant, vt_of(tenant) + math.floor(ms * 1000 / settings(tenant).weight))
  end
end

local function estimate(tenant)
  local ms = estimates[tenant]
  if not ms then
    ms = tonumber(call('HGET', K.estimate, tenant) or FIRST_ESTIMATE)
    estimates[tenant] = ms
  end
  return ms
end

-- Settles what an attempt cost: it was claimed then, and charged so much.
local function settle(tenant, claimed, charged)
  if claimed then
    local took = math.max(0, now - tonumber(claimed))
    charge(tenant, took - tonumber(charged))
    estimates[tenant] = math.floor(estimate(tenant) * 0.8 + took * 0.2 + 0.5)
    learned[tenant] = true
  end
end

local streams = {}

-- Writes the one and only ending of a job, and tells of it; `forget` belongs to it.
-- `keep` has ms for the result, entries for the stream, and the most bytes
-- a result may have to stand in the stream itself.
local function finish(tenant, id, data, outcome, keep)
  call('SET', K.result .. id, data, 'PX', keep.ms)
  call('PUBLISH', K.done .. id, #data <= MOST_INLINE and data or '')
  if keep.entries > 0 then
    local stream = K.results .. tenant
    call('XADD', stream, 'MAXLEN', '~', keep.entries, '*', 'id', id, 'outcome', outcome,
      'data', #data <= keep.inline and data or '')
    if not streams[tenant] then
      streams[tenant] = true
      call('PEXPIRE', stream, keep.ms)
    end
  end
end

-- Leaves nothing of a tenant's jobs but their results.
local function forget(tenant, ids)
  local names = {}
  for _, id in ipairs(ids) do
    local at = #names
    names[at + 1], names[at + 2] = K.in_progress .. id, K.state .. id
    names[at + 3], names[at + 4] = K.retry .. id, K.job .. id
  end
  call('DEL', unpack(names))
  call('ZREM', K.queue .. tenant, unpack(ids))
  call('ZREM', K.run .. tenant, unpack(ids))
  if exists(K.abort) then
    call('ZREM', K.abort, unpack(ids))
  end
  if exists(K.deadlines) then
    call('ZREM', K.deadlines, unpack(ids))
  end
end

-- Ends a job that no worker holds, with an ending (as JSON) that names no program.
local function finish_queued(tenant, id, ending, outcome, keep)
  local score = tonumber(call('ZSCORE', K.queue .. tenant, id) or now)
  local state = call('HMGET', K.state .. id, 'due', 'starts')
  local queued = math.max(0, math.min(now, tonumber(state[1] or score)))
  finish(tenant, id, '{"v":' .. VERSION .. ',"t":' .. int(tonumber(state[2] or 0))
    .. ',"f":"' .. FUNCTION .. '","et":'
    .. int(queued) .. ',"a":[],"k":{},"s":false,"r":' .. ending .. ',"st":' .. int(now)
    .. ',"ft":' .. int(now) .. ',"q":' .. cjson.encode(K.queue .. tenant)
    .. ',"id":' .. cjson.encode(id) .. '}', outcome, keep)
  forget(tenant, {id})
  if arm(tenant) then
    hint()
  end
end

-- Ends a queued job at once, has a running one stopped by its worker.
-- Returns 'cancelled', 'running', 'finished', or 'unknown'.
local function cancel(tenant, id, ending, keep)
  if call('EXISTS', K.result .. id) == 1 then
    return 'finished'
  end
  local lock = call('GET', K.in_progress .. id)
  if lock then
    if lock == call('HGET', K.state .. id, 'token') then
      call('HSET', K.state .. id, 'cancel', '1')
      call('PUBLISH', K.control .. string.match(lock, '^(.*):'), lock)
    else
      -- A stock arq worker holds it.
      call('ZADD', K.abort, now, id)
    end
    return 'running'
  end
  if not call('ZSCORE', K.queue .. tenant, id) then
    return 'unknown'
  end
  finish_queued(tenant, id, ending, 'cancelled', keep)
  return 'cancelled'
end
