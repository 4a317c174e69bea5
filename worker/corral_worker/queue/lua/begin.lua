-- Marks attempts whose programs are about to start, so that none is run again unasked.
--
-- ARGV  three for each attempt: tenant, id, token
-- Returns one number for each: 1 go on, 0 the lease is lost, 2 it was cancelled.

local answers = {}
for at = 1, #ARGV, 3 do
  local id, token = ARGV[at + 1], ARGV[at + 2]
  local state = K.state .. id
  if call('GET', K.in_progress .. id) ~= token then
    answers[#answers + 1] = 0
  else
    local fields = call('HMGET', state, 'cancel', 'started', 'starts')
    -- Twice for the same attempt (its answer was lost) counts once.
    if not fields[1] and fields[2] ~= token then
      call('HSET', state, 'started', token, 'starts', int(tonumber(fields[3] or 0) + 1))
    end
    answers[#answers + 1] = fields[1] and 2 or 1
  end
end
return answers
