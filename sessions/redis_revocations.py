"""Revocations in Redis: one stream, `fl:revoked`, that every node reads on from where it is, so that a lost connection misses nothing.

Entries go when they are due, and the stream with the last of them.
"""

import math

from sessions.redis_line import Command, RedisLine, Script
from sessions.revocation import Heard, Revocation, decode_revocations, encode_revocation

_STREAM = "fl:revoked"
_START = "0-0"
_NUM_ENTRIES = 1000

# ARGV: until when it is kept, in seconds, and the revocation. Those at the head that are due go first, a bounded number in one step.
_REVOKE = Script("""
local call = redis.call
local stream = KEYS[1]
local now_s = tonumber(call('TIME')[1])
for _, entry in ipairs(call('XRANGE', stream, '-', '+', 'COUNT', 100)) do
  if tonumber(entry[2][2]) >= now_s then
    break
  end
  call('XDEL', stream, entry[1])
end
local expires_s = call('EXPIRETIME', stream)
call('XADD', stream, '*', 'until', ARGV[1], 'revocation', ARGV[2])
call('EXPIREAT', stream, math.max(expires_s, tonumber(ARGV[1])))
""")


async def revoke(line: RedisLine, revocation: Revocation) -> None:
    """Add it to the stream."""
    await line.run(_REVOKE, (_STREAM, revocation.kept_until_s, encode_revocation(revocation)))


async def revocations(line: RedisLine, after: str, wait_s: float) -> Heard:
    """As `Store.revocations`."""
    after = after or _START
    if after != _START:
        # Redis came back empty or older, or the entry was due. Its ids may be smaller now: waiting beyond the old one could be for ever.
        (mark,) = await line.ask(("XRANGE", _STREAM, after, after))
        after = after if mark else _START
    is_anew = after == _START
    # BLOCK 0 would be for ever.
    block: Command = ("BLOCK", max(1, math.ceil(wait_s * 1000))) if wait_s > 0 else ()
    (reply,) = await line.ask(("XREAD", "COUNT", _NUM_ENTRIES, *block, "STREAMS", _STREAM, after), wait_s=wait_s)
    entries = reply[0][1] if reply else []
    found = decode_revocations(fields[3] for _, fields in entries)
    return Heard(found, entries[-1][0].decode() if entries else after, is_anew)
