#!lua flags=allow-oom
-- Ends attempts: writes their results, or hands their jobs back. Fenced by the token.
--
-- ARGV  1 ms to keep a result   2 entries of a results stream   3 most bytes inline there
--       then seven for each attempt: tenant, id, token, what, and
--         final  data of the result, outcome, '' or why the job goes to the dead letters
--         back   ms after it was due until which it must have started ('' for any time),
--                '1' if its start is not to count, ''
-- Returns one number for each: 1 done, 0 the lease is lost and nothing was written,
--   2 not handed back, for it was cancelled: commit that.

local keep = {ms = tonumber(ARGV[1]), entries = tonumber(ARGV[2]), inline = tonumber(ARGV[3])}
local KEEP_DEAD = 30 * 86400000
local answers = {}
local finished, touched = {}, {}

local function bury(id, tenant, why)
  local state = call('HMGET', K.state .. id, 'lost', 'starts')
  if call('EXISTS', K.job .. id) == 1 then
    call('RENAME', K.job .. id, K.dead_job .. id)
    call('PEXPIRE', K.dead_job .. id, KEEP_DEAD)
  end
  call('HSET', K.death .. id, 'tenant', tenant, 'why', why, 'lost', state[1] or '0',
    'starts', state[2] or '0')
  call('PEXPIRE', K.death .. id, KEEP_DEAD)
  call('ZREMRANGEBYSCORE', K.dead, '-inf', now - KEEP_DEAD)
  call('ZADD', K.dead, now, id)
  if call('ZCARD', K.dead) > MOST_DEAD then
    local oldest = call('ZPOPMIN', K.dead)
    call('DEL', K.dead_job .. oldest[1], K.death .. oldest[1])
  end
end

-- The job gets its place in the queue back.
local function hand_back(tenant, id, within, forgive)
  local key = K.state .. id
  local state = call('HMGET', key, 'started', 'token', 'due')
  if forgive == '1' and state[1] and state[1] == state[2] then
    call('HINCRBY', key, 'starts', -1)
  end
  call('DEL', K.in_progress .. id)
  call('ZREM', K.run .. tenant, id)
  call('HDEL', key, 'token', 'claimed', 'charged', 'started')
  local due = tonumber(state[3] or now)
  call('ZADD', K.queue .. tenant, due, id)
  if within ~= '' then
    call('ZADD', K.deadlines, due + tonumber(within), id)
  end
end

local locks = {}
for at = 5, #ARGV, 7 do
  locks[#locks + 1] = K.in_progress .. ARGV[at]
end
locks = call('MGET', unpack(locks))

for at = 4, #ARGV, 7 do
  local tenant, id, token, what = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local answer = 1
  if locks[#answers + 1] ~= token then
    answer = 0
  else
    local state = call('HMGET', K.state .. id, 'claimed', 'charged', 'cancel')
    if what == 'final' then
      settle(tenant, state[1], state[2])
      if ARGV[at + 6] ~= '' then
        bury(id, tenant, ARGV[at + 6])
      end
      finish(tenant, id, ARGV[at + 4], ARGV[at + 5], keep)
      finished[tenant] = finished[tenant] or {}
      table.insert(finished[tenant], id)
    elseif state[3] then
      answer = 2
    else
      settle(tenant, state[1], state[2])
      hand_back(tenant, id, ARGV[at + 4], ARGV[at + 5])
    end
    touched[tenant] = touched[tenant] or answer == 1
  end
  answers[#answers + 1] = answer
end

for tenant, ids in pairs(finished) do
  forget(tenant, ids)
end
for tenant in pairs(touched) do
  if arm(tenant) then
    hint()
  end
end
return answers
