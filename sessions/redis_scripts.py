"""What Redis does in one step: the Lua scripts of `redis_store`, and nothing that decides when they run.

Every script names one key, the outbox `fl:{n}:outbox` of its shard, and derives the session's keys from it: the hash tag is the same, so
all of them live in one slot. Lua numbers are doubles: sequence numbers and times stay exact below 2^53, and `..` prints them exactly
below 10^14. Compatible with Redis 7.0.
"""

# A session that was trimmed for good expires; whoever touches it again starts its retention anew, and its new journal expires with it.
_KEYS = """
local call = redis.call
local prefix = string.sub(KEYS[1], 1, -7)
local function keep(base, retention_ms)
  call('PEXPIRE', base .. ':state', retention_ms)
  call('PEXPIRE', base .. ':items', retention_ms)
  call('PEXPIRE', base .. ':journal', retention_ms)
end
"""

# ARGV[1] is a flat msgpack list of seven strings a session: id, epoch, first sequence number, last, the one after it, at_ms; and either
# false or the list {number of records, ids of dropped items, ids of saved items, whether the config is replaced}. The other arguments are
# bytes, because cmsgpack of Redis 7.0 cannot read binary strings: each session's joined events, then its records, its items and its
# config. Answers a character a session: (o)k, (d)up, (g)ap, (f)enced. Numbers stay strings: Redis prints a Lua number by its slowest way.
APPEND = (
    _KEYS
    + """
local header = cmsgpack.unpack(ARGV[1])
local blob = 1
local replies = {}
for i = 1, #header, 7 do
  local first, next, extras = header[i + 2], header[i + 4], header[i + 6]
  local base = prefix .. header[i]
  local state = base .. ':state'
  local stored = call('HMGET', state, 'epoch', 'next', 'final')
  local events = blob + 1
  blob = events
  local reply = 'o'
  if stored[1] ~= header[i + 1] then
    reply = 'f'
  elseif stored[2] ~= first then
    reply = (next ~= first and tonumber(header[i + 3]) < tonumber(stored[2])) and 'd' or 'g'
  end
  if reply == 'o' then
    if next ~= first then
      call('XADD', base .. ':journal', header[i + 3] .. '-0', 'first', first, 'at', header[i + 5], 'events', ARGV[events])
      call('HSET', state, 'next', next)
    end
    if extras then
      for _ = 1, extras[1] do
        blob = blob + 1
        call('XADD', KEYS[1], '*', 'record', ARGV[blob])
      end
      for _, item in ipairs(extras[2]) do
        call('HDEL', base .. ':items', item)
      end
      for _, item in ipairs(extras[3]) do
        blob = blob + 1
        call('HSET', base .. ':items', item, ARGV[blob])
      end
      if extras[4] then
        blob = blob + 1
        call('HSET', state, 'config', ARGV[blob])
      end
    end
    if stored[3] then
      keep(base, stored[3])
    end
  elseif extras then
    blob = blob + extras[1] + #extras[3] + (extras[4] and 1 or 0)
  end
  replies[#replies + 1] = reply
end
return table.concat(replies)
"""
)

# ARGV: session, owner, meta. The epoch, or nil when the session belongs to another or has begun already. A retry finds its own work.
CREATE = (
    _KEYS
    + """
local state = prefix .. ARGV[1] .. ':state'
if call('EXISTS', state) == 1 then
  local stored = call('HMGET', state, 'owner', 'epoch', 'next', 'meta')
  if stored[1] == ARGV[2] and stored[2] == '1' and stored[3] == '1' and stored[4] == ARGV[3] then
    return 1
  end
  return false
end
call('HSET', state, 'owner', ARGV[2], 'epoch', 1, 'next', 1, 'archived', 0, 'meta', ARGV[3])
return 1
"""
)

# ARGV: session, owner. {state, items} as flat lists, or nil when there is no such session.
CLAIM = (
    _KEYS
    + """
local base = prefix .. ARGV[1]
local state = base .. ':state'
if call('EXISTS', state) == 0 then
  return false
end
call('HINCRBY', state, 'epoch', 1)
call('HSET', state, 'owner', ARGV[2])
local retention_ms = call('HGET', state, 'final')
if retention_ms then
  keep(base, retention_ms)
end
return {call('HGETALL', state), call('HGETALL', base .. ':items')}
"""
)

# ARGV: session, archived sequence number, retention in ms when final, else ''. What the archive does not hold is never deleted here.
TRIM = (
    _KEYS
    + """
local base = prefix .. ARGV[1]
local state = base .. ':state'
local journal = base .. ':journal'
local archived = tonumber(ARGV[2])
call('XTRIM', journal, 'MINID', archived + 1)
if call('XLEN', journal) == 0 then
  call('DEL', journal)
end
local stored = call('HGET', state, 'archived')
if not stored then
  return
end
if archived > tonumber(stored) then
  call('HSET', state, 'archived', archived)
end
if ARGV[3] ~= '' then
  call('HSET', state, 'final', ARGV[3])
  keep(base, ARGV[3])
end
"""
)

# ARGV: consumer, least idle time in ms, limit. A list of {id, record, number of deliveries with this one}.
RECLAIM = """
local taken = {}
for _, entry in ipairs(redis.call('XPENDING', KEYS[1], 'writer', 'IDLE', ARGV[2], '-', '+', ARGV[3])) do
  for _, claimed in ipairs(redis.call('XCLAIM', KEYS[1], 'writer', ARGV[1], ARGV[2], entry[1])) do
    taken[#taken + 1] = {claimed[1], claimed[2][2], entry[4] + 1}
  end
end
return taken
"""

# ARGV: id, record, number of deliveries, error. Only who takes it out of the outbox buries it, so that a retry buries it once.
BURY = """
if redis.call('XACK', KEYS[1], 'writer', ARGV[1]) == 1 then
  redis.call('XDEL', KEYS[1], ARGV[1])
  local dead = string.sub(KEYS[1], 1, -7) .. 'dead'
  redis.call('XADD', dead, '*', 'record', ARGV[2], 'error', ARGV[4], 'deliveries', ARGV[3], 'receipt', ARGV[1])
end
"""
