-- Claims up to a number of jobs, tenant by tenant in the order of virtual time.
--
-- ARGV  1 worker   2 most jobs   3 ms of the lease   4 nonce of the request
--       5 lost leases after which a job is dead   6 most bytes of one payload
--       7 most bytes of payloads in all
-- Returns {now, ms until the next tenant is due (-1: none), {job, ...}}; each job is
--   {tenant, id, token, what, starts, lost leases, ms since it was due, payload,
--    the tenant's policy as JSON, '' for none}
--   and what is one of
--     run        start it
--     cancelled  it was cancelled before it could start
--     dead       it lost its lease too often
--     large      the payload is larger than allowed and is not given
--     gone       the payload has expired
-- The same nonce again gives the same jobs, as far as their leases still hold.

local worker, most, lease, nonce = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local most_lost, most_bytes, most_in_all = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local MOST_PROMOTED = 64
local MOST_POLICY = 65536
local NO_POLICY_AT_ALL = '!'

local jobs = {}
local bytes = 0

local policies = {}
local function policy_of(tenant)
  local found = policies[tenant]
  if not found then
    local size = call('HSTRLEN', K.tenant .. tenant, 'policy')
    found = ''
    if size > MOST_POLICY then
      -- Nothing that can be read: the job is refused.
      found = NO_POLICY_AT_ALL
    elseif size > 0 then
      found = call('HGET', K.tenant .. tenant, 'policy')
    end
    policies[tenant] = found
  end
  return found
end

local function add(tenant, id, token, state)
  local what, payload, policy = 'run', '', ''
  if state.cancel then
    what = 'cancelled'
  elseif state.lost >= most_lost then
    what = 'dead'
  else
    payload = call('GETRANGE', K.job .. id, 0, most_bytes)
    if payload == '' then
      what = 'gone'
    elseif #payload > most_bytes then
      what, payload = 'large', ''
    else
      policy = policy_of(tenant)
    end
    bytes = bytes + #payload
  end
  jobs[#jobs + 1] = {tenant, id, token, what, state.starts, state.lost,
    int(math.max(0, now - state.due)), payload, policy}
end

local function read_state(id)
  local fields = call('HMGET', K.state .. id, 'token', 'due', 'starts', 'lost', 'cancel')
  return {token = fields[1], due = tonumber(fields[2] or ''), starts = tonumber(fields[3] or 0),
    lost = tonumber(fields[4] or 0), cancel = fields[5]}
end

local function next_due()
  local first = call('ZRANGE', K.later, 0, 0, 'WITHSCORES')
  return first[2] and int(math.max(0, tonumber(first[2]) - now)) or '-1'
end

local memory = K.claim .. worker
local earlier = call('GET', memory)
if earlier then
  local batch = cjson.decode(earlier)
  if batch.nonce == nonce then
    for _, held in ipairs(batch.jobs) do
      if call('GET', K.in_progress .. held[2]) == held[3] then
        add(held[1], held[2], held[3], read_state(held[2]))
      end
    end
    return {int(now), next_due(), jobs}
  end
end

for _, tenant in ipairs(call('ZRANGEBYSCORE', K.later, '-inf', int(now), 'LIMIT', 0, MOST_PROMOTED)) do
  arm(tenant)
end

local held = {}
local function take(tenant, id, score, token)
  local state = read_state(id)
  local cost = estimate(tenant)
  local fields = {'tenant', tenant, 'token', token, 'claimed', int(now), 'charged', int(cost)}
  if state.token then
    state.lost = state.lost + 1
    fields[9], fields[10] = 'lost', int(state.lost)
  end
  if not state.due then
    state.due = tonumber(score)
    fields[#fields + 1], fields[#fields + 2] = 'due', score
  end
  if aborts and call('ZSCORE', K.abort, id) then
    state.cancel = '1'
    fields[#fields + 1], fields[#fields + 2] = 'cancel', '1'
  end
  call('HSET', K.state .. id, unpack(fields))
  call('ZADD', K.queue .. tenant, 'XX', int(now + lease), id)
  call('ZADD', K.run .. tenant, int(now + lease), id)
  if deadlines then
    call('ZREM', K.deadlines, id)
  end
  charge(tenant, cost)
  add(tenant, id, token, state)
  held[#held + 1] = {tenant, id, token}
end

local epoch = call('INCRBY', K.epoch, most) - most
-- A step either takes a job or puts one off; the bound is for what nobody thought of.
for _ = 1, most * 4 + 64 do
  if #held >= most or bytes >= most_in_all then
    break
  end
  local first = call('ZPOPMIN', K.ready)
  local tenant = first[1]
  if not tenant then
    break
  end
  local queue = K.queue .. tenant
  local set = settings(tenant)
  local due = call('ZRANGEBYSCORE', queue, '-inf', int(now), 'WITHSCORES', 'LIMIT', 0, 2)
  local id = due[1]
  local places = math.huge
  if set.suspended or set.closed then
    places = 0
  elseif set.concurrency > 0 then
    call('ZREMRANGEBYSCORE', K.run .. tenant, '-inf', int(now))
    places = set.concurrency - call('ZCARD', K.run .. tenant)
  end
  local more = false
  if id and places > 0 then
    local vt = tonumber(first[2])
    vts[tenant] = vt
    -- The nonce, for a server that took over may know nothing of the last epochs.
    local token = worker .. ':' .. int(epoch + #held + 1) .. '.' .. nonce
    if call('SET', K.in_progress .. id, token, 'NX', 'PX', int(lease)) then
      set_clock(vt)
      take(tenant, id, due[2], token)
      more = due[3] and places > 1
    else
      -- It runs: Job.abort() of stock arq has moved it to the front, or a stock worker holds it.
      local left = call('PTTL', K.in_progress .. id)
      call('ZADD', queue, 'XX', int(now + (left < 0 and lease or math.max(1, left))), id)
    end
  end
  if more then
    call('ZADD', K.ready, int(vts[tenant]), tenant)
  else
    arm(tenant)
  end
end

if #held > 0 then
  call('SET', memory, cjson.encode({nonce = nonce, jobs = held}), 'PX', int(lease))
end
if call('ZCARD', K.ready) == 0 then
  -- Hints that are left over would wake workers for nothing.
  call('DEL', K.wake)
  hinted = false
elseif #held > 0 then
  hint()
end
return {int(now), next_due(), jobs}
