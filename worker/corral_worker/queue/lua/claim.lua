#!lua flags=allow-oom
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
-- The same nonce again gives the same jobs, as far as their leases still hold; those begin anew.

local worker, most, lease, nonce = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local most_lost, most_bytes, most_in_all = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local MOST_PROMOTED = 64
local MOST_POLICY = 65536
local LONGEST = 86400000
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
    local key = K.job .. id
    local size = call('STRLEN', key)
    if size == 0 then
      what = 'gone'
    elseif size > most_bytes then
      what = 'large'
    else
      payload = call('GET', key)
      policy = policy_of(tenant)
    end
    bytes = bytes + #payload
  end
  jobs[#jobs + 1] = {tenant, id, token, what, state.starts, state.lost,
    math.min(now, math.max(0, now - state.due)), payload, policy}
end

local function read_state(key)
  local found, fields = {}, call('HGETALL', key)  -- mostly there is none yet
  for at = 1, #fields, 2 do
    found[fields[at]] = fields[at + 1]
  end
  return {token = found.token, due = tonumber(found.due or ''), starts = tonumber(found.starts or 0),
    lost = tonumber(found.lost or 0), cancel = found.cancel}
end

local function next_due()
  local first = call('ZRANGE', K.later, 0, 0, 'WITHSCORES')
  return first[2] and math.min(LONGEST, math.max(0, tonumber(first[2]) - now)) or -1
end

local memory = K.claim .. worker
local earlier = call('GET', memory)
if earlier and string.sub(earlier, 1, #nonce) == nonce then
  for _, held in ipairs(cjson.decode(string.sub(earlier, #nonce + 1))) do
    local tenant, id, token = held[1], held[2], held[3]
    if call('GET', K.in_progress .. id) == token then
      -- The worker counts from this request: what is left of the first one's lease may be little.
      call('PEXPIRE', K.in_progress .. id, lease)
      call('ZADD', K.queue .. tenant, now + lease, id)
      call('ZADD', K.run .. tenant, now + lease, id)
      add(tenant, id, token, read_state(K.state .. id))
    end
  end
  call('PEXPIRE', memory, lease)
  return {now, next_due(), jobs}
end

for _, tenant in ipairs(call('ZRANGEBYSCORE', K.later, '-inf', now, 'LIMIT', 0, MOST_PROMOTED)) do
  arm(tenant)
end

-- What each tenant has to offer. What is taken of it is written when it is left.
local offers = {}

local function look(tenant, share)
  local offer = offers[tenant]
  local due = call('ZRANGEBYSCORE', K.queue .. tenant, '-inf', now, 'WITHSCORES',
    'LIMIT', 0, share)
  offer.due, offer.at, offer.all = due, 1, #due < share * 2
end

local function offer_of(tenant, share)
  local offer = offers[tenant]
  if not offer then
    local set = settings(tenant)
    offer = {places = math.huge, due = {}, at = 1, all = true, queue = {}, run = {}}
    offers[tenant] = offer
    if set.suspended or set.closed then
      offer.places = 0
    elseif set.concurrency > 0 then
      call('ZREMRANGEBYSCORE', K.run .. tenant, '-inf', now)
      offer.places = set.concurrency - call('ZCARD', K.run .. tenant)
    end
    if offer.places > 0 then
      look(tenant, share)
    end
  end
  return offer
end

local function write(tenant)
  local offer = offers[tenant]
  if #offer.queue > 0 then
    call('ZADD', K.queue .. tenant, 'XX', unpack(offer.queue))
  end
  if #offer.run > 0 then
    call('ZADD', K.run .. tenant, unpack(offer.run))
  end
  offer.queue, offer.run = {}, {}
end

local function has_more(tenant, offer, share)
  if offer.places <= 0 then
    return false
  end
  if not offer.due[offer.at] and not offer.all then
    write(tenant)
    look(tenant, share)
  end
  return offer.due[offer.at] ~= nil
end

local held, ids = {}, {}
local function take(tenant, id, score, token)
  local key = K.state .. id
  local state = read_state(key)
  local cost = estimate(tenant)
  local fields = {'tenant', tenant, 'token', token, 'claimed', now, 'charged', cost}
  if state.token then
    state.lost = state.lost + 1
    fields[9], fields[10] = 'lost', state.lost
  end
  if not state.due then
    state.due = tonumber(score)
    fields[#fields + 1], fields[#fields + 2] = 'due', score
  end
  if exists(K.abort) and call('ZSCORE', K.abort, id) then
    state.cancel = '1'
    fields[#fields + 1], fields[#fields + 2] = 'cancel', '1'
  end
  call('HSET', key, unpack(fields))
  charge(tenant, cost)
  add(tenant, id, token, state)
  held[#held + 1] = {tenant, id, token}
  ids[#ids + 1] = id
end

local epoch
local function new_token()
  epoch = epoch or call('INCRBY', K.epoch, most) - most
  -- The nonce, for a server that took over may know nothing of the last epochs.
  return worker .. ':' .. int(epoch + #held + 1) .. '.' .. nonce
end

-- Takes one job of a tenant, or puts it off; false if that leaves no other.
local function serve(tenant, share)
  local offer = offer_of(tenant, share)
  if not has_more(tenant, offer, share) then
    return false
  end
  local id, score = offer.due[offer.at], offer.due[offer.at + 1]
  offer.at = offer.at + 2
  local token = new_token()
  local lock = K.in_progress .. id
  local ends
  if call('SET', lock, token, 'NX', 'PX', lease) then
    ends = now + lease
    offer.places = offer.places - 1
    offer.run[#offer.run + 1], offer.run[#offer.run + 2] = ends, id
    set_clock(vt_of(tenant))
    take(tenant, id, score, token)
  else
    -- It runs: Job.abort() of stock arq has moved it to the front, or a stock worker holds it.
    local left = call('PTTL', lock)
    ends = now + (left < 0 and lease or math.max(1, left))
  end
  offer.queue[#offer.queue + 1], offer.queue[#offer.queue + 2] = ends, id
  return has_more(tenant, offer, share)
end

-- Moves the first of a line to where its virtual time belongs now.
local function reorder(line)
  local first = line[1]
  local vt, at = vt_of(first), 1
  while line[at + 1] do
    local other = vt_of(line[at + 1])
    if other > vt or other == vt and line[at + 1] > first then
      break
    end
    line[at] = line[at + 1]
    at = at + 1
  end
  line[at] = first
end

-- Serves whoever is behind most, again and again: the tenants of the lowest virtual
-- times, as many as there are jobs to take, for no other can be behind them meanwhile.
-- A step either takes a job or puts one off; the bound is for what nobody thought of.
local steps = most * 4 + 64
while steps > 0 and #held < most do
  local first = call('ZRANGE', K.ready, 0, most - 1, 'WITHSCORES')
  local line = {}
  for at = 1, #first, 2 do
    line[#line + 1] = first[at]
    vts[first[at]] = vts[first[at]] or tonumber(first[at + 1])
  end
  if not line[1] then
    break
  end
  local share = math.ceil(most / #line) + 1
  while steps > 0 and line[1] and #held < most and bytes < most_in_all do
    steps = steps - 1
    if serve(line[1], share) then
      reorder(line)
    else
      local tenant = table.remove(line, 1)
      write(tenant)
      arm(tenant)
      offers[tenant] = nil
    end
  end
  if bytes >= most_in_all then
    break
  end
end
for tenant in pairs(offers) do
  write(tenant)
end
if #ids > 0 and exists(K.deadlines) then
  call('ZREM', K.deadlines, unpack(ids))
end

if #held > 0 then
  call('SET', memory, nonce .. cjson.encode(held), 'PX', lease)
end
if call('ZCARD', K.ready) == 0 then
  -- Hints that are left over would wake workers for nothing.
  call('DEL', K.wake)
  hinted = false
elseif #held > 0 then
  hint()
end
return {now, next_due(), jobs}
