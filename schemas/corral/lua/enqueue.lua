-- Puts jobs on their tenants' queues: all of them, or none.
--
-- ARGV  1 number of jobs; then eight for each:
--       tenant, id, payload, ms of delay, start in ms since 1970 ('' for none),
--       ms after its start time until which it must have started ('' for any time),
--       idempotency key ('' for none), digest of the job
-- Returns {'ok', id, id, ...}: the given ids, or those of earlier jobs of the same
--   idempotency keys; or {'quota', index, reason, limit, found, ms to wait (-1: never)};
--   or {'conflict', index, id of the earlier job}.

local KEEP_KEY = 86400000
local STRIDE = 8

local count = tonumber(ARGV[1])
local ids = {'ok'}
local new = {}
local adds = {}
local claimed_keys = {}

local function start_of(at)
  if ARGV[at + 5] ~= '' then
    return math.max(now, tonumber(ARGV[at + 5]))
  end
  return now + tonumber(ARGV[at + 4])
end

-- What a key holds. Nothing if its job neither waits nor runs nor has a result: that has expired.
local function held_by(tenant, name)
  local held = call('GET', name)
  if held then
    local id = string.match(held, '^%S+ (.*)$')
    if call('EXISTS', K.result .. id) == 1 or call('ZSCORE', K.queue .. tenant, id) then
      return held
    end
  end
end

local function wait_for(tenant, over)
  local running = math.max(1, call('ZCARD', K.run .. tenant))
  return int(math.min(60000, math.max(100, over * estimate(tenant) / running)))
end

for index = 1, count do
  local at = 1 + (index - 1) * STRIDE
  local tenant, id, payload = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local key, digest = ARGV[at + 7], ARGV[at + 8]
  local earlier
  if key ~= '' then
    local name = K.idempotency .. tenant .. ':' .. key
    local claimed = claimed_keys[name]
    local held = claimed and claimed.held or held_by(tenant, name)
    if held then
      local held_digest, held_id = string.match(held, '^(%S+) (.*)$')
      if held_digest ~= digest then
        return {'conflict', index, held_id}
      end
      earlier = held_id
    else
      claimed_keys[name] = {held = digest .. ' ' .. id, at = at}
    end
  end
  if not earlier and call('EXISTS', K.job .. id, K.result .. id) > 0 then
    earlier = id
  end
  if earlier then
    ids[index + 1] = earlier
  else
    local set = settings(tenant)
    if set.closed then
      return {'quota', index, 'unknown_tenant', '0', '0', '-1'}
    end
    if set.payload_bytes > 0 and #payload > set.payload_bytes then
      return {'quota', index, 'payload_bytes', int(set.payload_bytes), int(#payload), '-1'}
    end
    if set.depth > 0 then
      adds[tenant] = (adds[tenant] or call('ZCARD', K.queue .. tenant)) + 1
      if adds[tenant] > set.depth then
        return {'quota', index, 'depth', int(set.depth), int(adds[tenant] - 1),
          wait_for(tenant, adds[tenant] - set.depth)}
      end
    end
    ids[index + 1] = id
    new[#new + 1] = at
  end
end

-- Should Redis refuse a step (a stranger's value in the way), none before it does harm: what tells
-- that there is a job is written when it stands in its queue.
local touched = {}
for _, at in ipairs(new) do
  touched[ARGV[at + 1]] = true
end
for tenant in pairs(touched) do
  call('SADD', K.tenants, tenant)
end
for _, at in ipairs(new) do
  local tenant, id = ARGV[at + 1], ARGV[at + 2]
  local start = start_of(at)
  if ARGV[at + 6] ~= '' then
    call('ZADD', K.deadlines, start + tonumber(ARGV[at + 6]), id)
  end
  call('ZADD', K.queue .. tenant, start, id)
  -- Without an end of its own: however long a job waits, it is not dropped. What ends it deletes it.
  call('SET', K.job .. id, ARGV[at + 3])
end
for name, claimed in pairs(claimed_keys) do
  call('SET', name, claimed.held, 'PX', start_of(claimed.at) - now + KEEP_KEY)
end
for tenant in pairs(touched) do
  if arm(tenant) then
    hint()
  end
end
return ids
