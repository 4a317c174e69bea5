#!lua flags=allow-oom
-- Renews leases, and charges attempts that take longer than was estimated.
--
-- ARGV  1 ms of the lease; then three for each attempt: tenant, id, token
-- Returns one number for each: 1 renewed, 0 the lease is lost, 2 renewed and to be cancelled.

-- What stock arq clients give an end of its own: it does not come while the job runs.
local KEEP_PAYLOAD = 93600000

local lease = tonumber(ARGV[1])
local answers = {}
local touched = {}
for at = 2, #ARGV, 3 do
  local tenant, id, token = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local state = K.state .. id
  if call('GET', K.in_progress .. id) ~= token then
    answers[#answers + 1] = 0
  else
    call('PEXPIRE', K.in_progress .. id, lease)
    call('ZADD', K.queue .. tenant, now + lease, id)
    call('ZADD', K.run .. tenant, now + lease, id)
    call('PEXPIRE', K.job .. id, KEEP_PAYLOAD, 'GT')
    local fields = call('HMGET', state, 'claimed', 'charged', 'cancel')
    local took = now - tonumber(fields[1])
    if took > tonumber(fields[2]) then
      charge(tenant, took - tonumber(fields[2]))
      call('HSET', state, 'charged', took)
    end
    touched[tenant] = true
    answers[#answers + 1] = fields[3] and 2 or 1
  end
end
-- A tenant at its cap is looked at when its first lease ends: that is later now.
for tenant in pairs(touched) do
  arm(tenant)
end
return answers
