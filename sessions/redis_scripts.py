"""What Redis does in one step: the Lua scripts of `redis_store`, and nothing that decides when they run.

Every script names one key, the outbox `fl:{n}:outbox` of its shard, and derives the other keys from it: the hash tag is the same, so
all of them live in one slot. Lua numbers are doubles: sequence numbers and times stay exact below 2^53, and `..` prints them exactly
below 10^14. Compatible with Redis 7.0.

A shard's owners: `fl:{n}:owners` (when each one's lease ends, in ms of Redis's clock; 0 before the first), `fl:{n}:owned:<owner>` (ids of
its sessions) and `fl:{n}:taken:<owner>` (ids that others claimed, with the epoch of that claim, until the owner was told).
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

# Epochs are compared by number only where they differ: "<number>.<owner>". What was taken from an owner that never comes back expires; one
# that comes back later still finds out, at its next append. All that a session's state is comes in one command, after it is owned: a Redis
# that cuts a torn log by itself (`redis_durability`) may do the first half of a script. What is owned and is not there LAPSED forgets.
_OWNERS = """
local function number(epoch)
  return tonumber(string.match(epoch, '^%d+')) or 0
end
local function now_ms()
  local time = call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local function lease_until(owner, lease_ms)
  call('ZADD', prefix .. 'owners', 'GT', lease_ms == '0' and 0 or now_ms() + lease_ms, owner)
end
local function take(id, state, owner, epoch, lease_ms, ...)
  local former = call('HGET', state, 'owner')
  if former and former ~= owner then
    local taken = prefix .. 'taken:' .. former
    call('SREM', prefix .. 'owned:' .. former, id)
    call('HSET', taken, id, epoch)
    call('PEXPIRE', taken, 3600000)
  end
  call('HDEL', prefix .. 'taken:' .. owner, id)
  call('SADD', prefix .. 'owned:' .. owner, id)
  lease_until(owner, lease_ms)
  call('HSET', state, 'owner', owner, 'epoch', epoch, ...)
end
"""

# ARGV[1] is a flat msgpack list of seven strings a session: id, epoch, first sequence number, last, the one after it, at_ms; and either
# false or the list {number of records, ids of dropped items, ids of saved items, whether the config is replaced, whether the session
# ends}. The other arguments are bytes, because cmsgpack of Redis 7.0 cannot read binary strings: each session's joined events, then its
# records, its items and its config. Answers a character a session: (o)k, (d)up, (g)ap, (f)enced, (l)ost. Numbers stay strings: Redis
# prints a Lua number by its slowest way. An end without events has no sequence number to be known again by, but it leaves no owner.
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
    local theirs, ours = string.match(stored[1] or '', '^%d+'), string.match(header[i + 1], '^%d+')
    reply = (theirs and tonumber(theirs) >= (tonumber(ours) or 0)) and 'f' or 'l'
  elseif stored[2] ~= first then
    reply = (next ~= first and tonumber(header[i + 3]) < tonumber(stored[2])) and 'd' or 'g'
  elseif extras and extras[5] and next == first and call('HEXISTS', state, 'owner') == 0 then
    reply = 'd'
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
      local owner = extras[5] and call('HGET', state, 'owner')
      if owner then
        call('HDEL', state, 'owner')
        call('SREM', prefix .. 'owned:' .. owner, header[i])
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

# ARGV: session, owner, lease in ms, meta. The epoch, or nil when the session belongs to another or has begun already. A retry finds its
# own work.
CREATE = (
    _KEYS
    + _OWNERS
    + """
local state = prefix .. ARGV[1] .. ':state'
local epoch = '1.' .. ARGV[2]
local stored = call('HMGET', state, 'epoch', 'next', 'meta')
if stored[1] then
  return (stored[1] == epoch and stored[2] == '1' and stored[3] == ARGV[4]) and epoch
end
take(ARGV[1], state, ARGV[2], epoch, ARGV[3], 'next', 1, 'archived', 0, 'meta', ARGV[4])
return epoch
"""
)

# ARGV: session, owner, lease in ms, whose it must be ('' or the claimer itself or an owner without a lease), and names and values that its
# meta must have. {state, items} as flat lists, or nil when there is no such session. Who names no such values adopts. `adopted`: the number
# of the epoch since which there was nothing else, and the epoch of the last adoption; a claim by an older release leaves that as it was.
CLAIM = (
    _KEYS
    + _OWNERS
    + """
local id, owner, former = ARGV[1], ARGV[2], ARGV[4]
local base = prefix .. id
local state = base .. ':state'
local stored = call('HMGET', state, 'epoch', 'final', 'owner', 'meta', 'adopted')
if not stored[1] or not stored[4] then
  return false
end
local meta = ARGV[5] and cjson.decode(stored[4])
for i = 5, #ARGV, 2 do
  if meta[ARGV[i]] ~= ARGV[i + 1] then
    return false
  end
end
if former ~= '' then
  local lease_end = former ~= owner and call('ZSCORE', prefix .. 'owners', former)
  if stored[3] ~= former or (lease_end and tonumber(lease_end) > now_ms()) then
    return false
  end
end
local epoch = number(stored[1]) + 1 .. '.' .. owner
take(id, state, owner, epoch, ARGV[3])
if meta then
  call('HDEL', state, 'adopted')
else
  local since, last = string.match(stored[5] or '', '^(%d+) (.*)$')
  call('HSET', state, 'adopted', (last == stored[1] and since or number(stored[1])) .. ' ' .. epoch)
end
if stored[2] then
  keep(base, stored[2])
end
return {call('HGETALL', state), call('HGETALL', base .. ':items')}
"""
)

# ARGV: session, owner, lease in ms, the owner's epoch, next sequence number, the one before it, meta, config, and each item's id and value.
# The new epoch, or nil when a later one is there. A restore whose reply was lost is not a later one.
RESTORE = (
    _KEYS
    + _OWNERS
    + """
local id, owner, ours, next = ARGV[1], ARGV[2], ARGV[4], ARGV[5]
local base = prefix .. id
local state = base .. ':state'
local stored = call('HMGET', state, 'epoch', 'next', 'restored')
local latest = number(ours)
if stored[1] and stored[1] ~= ours then
  local theirs = number(stored[1])
  if theirs >= latest and not (stored[2] == next and stored[3] == ours .. ' ' .. stored[1]) then
    return false
  end
  latest = math.max(latest, theirs)
end
local epoch = latest + 1 .. '.' .. owner
call('DEL', base .. ':items', base .. ':journal')
call('HDEL', state, 'final', 'adopted')
call('PERSIST', state)
local restored = ours .. ' ' .. epoch
take(id, state, owner, epoch, ARGV[3], 'next', next, 'archived', ARGV[6], 'meta', ARGV[7], 'config', ARGV[8], 'restored', restored)
for i = 9, #ARGV, 2 do
  call('HSET', base .. ':items', ARGV[i], ARGV[i + 1])
end
return epoch
"""
)

# ARGV: session, item, its value as it was read, the new one. Whether it was still the same.
SWAP = (
    _KEYS
    + """
local items = prefix .. ARGV[1] .. ':items'
if call('HGET', items, ARGV[2]) ~= ARGV[3] then
  return 0
end
call('HSET', items, ARGV[2], ARGV[4])
return 1
"""
)

# ARGV: owner, lease in ms. {whether it had a lease, ids and epochs of what others claimed}. Sessions that expired are found out a few at a
# time, as Redis does it with its keys.
RENEW = (
    _KEYS
    + _OWNERS
    + """
local owner = ARGV[1]
local owners, owned = prefix .. 'owners', prefix .. 'owned:' .. owner
local now = now_ms()
local lease_end = call('ZSCORE', owners, owner)
call('ZADD', owners, now + ARGV[2], owner)
for _, id in ipairs(call('SRANDMEMBER', owned, 8)) do
  if call('EXISTS', prefix .. id .. ':state') == 0 then
    call('SREM', owned, id)
  end
end
return {(lease_end and tonumber(lease_end) > now) and 1 or 0, call('HGETALL', prefix .. 'taken:' .. owner)}
"""
)

# ARGV: owner, ids and epochs as RENEW gave them. What was claimed once more since then is told once more.
TOLD = (
    _KEYS
    + """
local taken = prefix .. 'taken:' .. ARGV[1]
for i = 2, #ARGV, 2 do
  if call('HGET', taken, ARGV[i]) == ARGV[i + 1] then
    call('HDEL', taken, ARGV[i])
  end
end
"""
)

# ARGV: owner.
SURRENDER = (
    _KEYS
    + """
call('DEL', prefix .. 'taken:' .. ARGV[1])
if call('EXISTS', prefix .. 'owned:' .. ARGV[1]) == 1 then
  call('ZADD', prefix .. 'owners', 0, ARGV[1])
else
  call('ZREM', prefix .. 'owners', ARGV[1])
end
"""
)

# ARGV: owner, limit. Ids of sessions that others have without a lease, each followed by its owner. An owner that has nothing is forgotten,
# and so is what has expired, or was never created to its end, of which nobody has been told.
LAPSED = (
    _KEYS
    + _OWNERS
    + """
local owners = prefix .. 'owners'
local limit = tonumber(ARGV[2])
local found = {}
for _, owner in ipairs(call('ZRANGEBYSCORE', owners, '-inf', now_ms())) do
  if owner ~= ARGV[1] and limit > 0 then
    local owned = prefix .. 'owned:' .. owner
    for _, id in ipairs(call('SRANDMEMBER', owned, limit)) do
      limit = limit - 1
      local stored = call('HMGET', prefix .. id .. ':state', 'owner', 'meta')
      if stored[1] == owner and not stored[2] then
        call('DEL', prefix .. id .. ':state')
      end
      if stored[1] == owner and stored[2] then
        found[#found + 1] = id
        found[#found + 1] = owner
      else
        call('SREM', owned, id)
      end
    end
    if call('EXISTS', owned) == 0 then
      call('ZREM', owners, owner)
    end
  end
end
return found
"""
)

# ARGV: session, archived sequence number, retention in ms when final, else ''. What the archive does not hold is never deleted here. It may
# have been claimed since its end: whose it is does not change.
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

# ARGV: consumer, least idle time in ms, limit. A list of {id, record, number of deliveries with this one}. What was handed out and is
# nobody's any more, because a restart of Redis forgot to whom, comes too: it would stay for ever, neither new nor anybody's.
RECLAIM = """
local taken = {}
for _, entry in ipairs(redis.call('XPENDING', KEYS[1], 'writer', 'IDLE', ARGV[2], '-', '+', ARGV[3])) do
  for _, claimed in ipairs(redis.call('XCLAIM', KEYS[1], 'writer', ARGV[1], ARGV[2], entry[1])) do
    taken[#taken + 1] = {claimed[1], claimed[2][2], entry[4] + 1}
  end
end
local time = redis.call('TIME')
local until_ms = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000) - ARGV[2])
local last_ms, last_number = string.match(redis.call('XINFO', 'GROUPS', KEYS[1])[1][8], '(%d+)-(%d+)')
last_ms, last_number = tonumber(last_ms), tonumber(last_number)
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', until_ms, 'COUNT', ARGV[3])) do
  local ms, number = string.match(entry[1], '(%d+)-(%d+)')
  ms, number = tonumber(ms), tonumber(number)
  if #taken >= tonumber(ARGV[3]) or ms > last_ms or (ms == last_ms and number > last_number) then
    break
  end
  if #redis.call('XPENDING', KEYS[1], 'writer', entry[1], entry[1], 1) == 0 then
    redis.call('XCLAIM', KEYS[1], 'writer', ARGV[1], 0, entry[1], 'FORCE', 'JUSTID')
    taken[#taken + 1] = {entry[1], entry[2][2], 1}
  end
end
return taken
"""

# ARGV: id, record, number of deliveries, error. Only who takes it out of the outbox buries it, so that a retry buries it once. In this
# order, since a Redis that cuts a torn log by itself may do the first half only.
BURY = """
if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 1 then
  local dead = string.sub(KEYS[1], 1, -7) .. 'dead'
  redis.call('XADD', dead, '*', 'record', ARGV[2], 'error', ARGV[4], 'deliveries', ARGV[3], 'receipt', ARGV[1])
  redis.call('XDEL', KEYS[1], ARGV[1])
  redis.call('XACK', KEYS[1], 'writer', ARGV[1])
end
"""

# ARGV: ids of dead letters. How many went back into the outbox.
REVIVE = """
local dead = string.sub(KEYS[1], 1, -7) .. 'dead'
local num_revived = 0
for _, id in ipairs(ARGV) do
  local found = redis.call('XRANGE', dead, id, id)[1]
  if found then
    redis.call('XADD', KEYS[1], '*', 'record', found[2][2])
    redis.call('XDEL', dead, id)
    num_revived = num_revived + 1
  end
end
if redis.call('XLEN', dead) == 0 then
  redis.call('DEL', dead)
end
return num_revived
"""
