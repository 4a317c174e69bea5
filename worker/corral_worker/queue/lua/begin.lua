#!lua flags=allow-oom
-- Marks attempts whose programs are about to start, so that none is run again unasked.
--
-- ARGV  two for each attempt: id, token
-- Returns one number for each: 1 go on, 0 the lease is lost, 2 it was cancelled.

local locks = {}
for at = 1, #ARGV, 2 do
  locks[#locks + 1] = K.in_progress .. ARGV[at]
end
locks = call('MGET', unpack(locks))

local answers = {}
for at = 1, #ARGV, 2 do
  local state, token = K.state .. ARGV[at], ARGV[at + 1]
  local answer = 0
  if locks[#answers + 1] == token then
    local fields = call('HMGET', state, 'cancel', 'started', 'starts')
    -- Twice for the same attempt (its answer was lost) counts once.
    if not fields[1] and fields[2] ~= token then
      call('HSET', state, 'started', token, 'starts', tonumber(fields[3] or 0) + 1)
    end
    answer = fields[1] and 2 or 1
  end
  answers[#answers + 1] = answer
end
return answers
