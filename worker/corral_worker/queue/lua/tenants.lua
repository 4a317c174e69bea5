-- Tells what holds for tenants, and how many jobs they have. Changes nothing.
--
-- ARGV  tenants
-- Returns {tenant, 1 if a settings hash exists, 1 if it is a known name, 1 if closed out,
--   own weight, concurrency, depth, payload_bytes, suspended, policy (each '' if not set),
--   weight, concurrency, depth, payload_bytes, suspended (0 or 1) that hold,
--   jobs waiting, jobs running} for each.

local function text(number)
  return string.format('%.17g', number)
end

local answers = {}
for _, tenant in ipairs(ARGV) do
  local key = K.tenant .. tenant
  local own = call('HMGET', key, unpack(SETTINGS))
  local set = settings(tenant)
  local running = call('ZCOUNT', K.run .. tenant, '(' .. int(now), '+inf')
  answers[#answers + 1] = {
    tenant,
    call('EXISTS', key),
    call('SISMEMBER', K.tenants, tenant),
    set.closed and 1 or 0,
    own[1] or '', own[2] or '', own[3] or '', own[4] or '', own[5] or '',
    call('HGET', key, 'policy') or '',
    text(set.weight), text(set.concurrency), text(set.depth), text(set.payload_bytes),
    set.suspended and 1 or 0,
    math.max(0, call('ZCARD', K.queue .. tenant) - running),
    running,
  }
end
return answers
