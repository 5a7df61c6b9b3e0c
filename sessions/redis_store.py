"""The store on Redis: sessions spread over shards, every change one script, every connection used by one call at a time.

What is acknowledged is on Redis's disk (`appendfsync always`), which is checked at start. Scripts are in `redis_scripts`. Nothing here
retries: a call whose reply is lost raises `StoreUnavailable`, and the caller repeats what it knows to be repeatable.
"""

import asyncio
import itertools
import math
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import msgspec
import structlog
from redis.asyncio.connection import AbstractConnection, ConnectionPool

from sessions import redis_revocations, redis_scripts
from sessions.errors import SessionError, SessionNotFound, StoreUnavailable
from sessions.feedback import Feedback
from sessions.lost_claims import LostClaims
from sessions.redis_append import APPEND, STATUS, append_call
from sessions.redis_durability import check_durable
from sessions.redis_line import Command, RedisLine, Script
from sessions.revocation import Heard, Revocation
from sessions.store import (
    MAX_PART_BYTES,
    UNREADABLE,
    Append,
    AppendStatus,
    DeadLetter,
    Delivery,
    Glimpse,
    JournalEntry,
    LoadedSession,
    OutboxLag,
    PlacedItem,
    SessionMeta,
    decode_placed,
    encode_placed,
    epoch_number,
    rated,
)

_log = structlog.get_logger(__name__)

_GROUP = "writer"
_NUM_SPARE_LINES = 4
# How often an item is read anew that was written between its reading and its change.
_NUM_SWAPS = 5

_encode_meta = msgspec.json.Encoder().encode
_decode_meta = msgspec.json.Decoder(SessionMeta).decode


_CREATE = Script(redis_scripts.CREATE)
_CLAIM = Script(redis_scripts.CLAIM)
_RESTORE = Script(redis_scripts.RESTORE)
_SWAP = Script(redis_scripts.SWAP)
_RENEW = Script(redis_scripts.RENEW)
_TOLD = Script(redis_scripts.TOLD)
_SURRENDER = Script(redis_scripts.SURRENDER)
_LAPSED = Script(redis_scripts.LAPSED)
_TRIM = Script(redis_scripts.TRIM)
_RECLAIM = Script(redis_scripts.RECLAIM)
_BURY = Script(redis_scripts.BURY)
_REVIVE = Script(redis_scripts.REVIVE)


class RedisStore:
    """`sessions.store.Store` on one Redis, its keys spread over `num_shards` hash tags.

    `production` refuses a Redis that may lose what it acknowledged (`StoreNotDurable`); otherwise that is logged. Every call answers within
    `timeout_s` or raises `StoreUnavailable`. A session that was trimmed for good is forgotten after `retention_s` without a change.
    """

    def __init__(
        self,
        url: str,
        *,
        num_shards: int = 1,
        production: bool = False,
        retention_s: float = 7 * 86_400,
        timeout_s: float = 2.0,
    ) -> None:
        self._outboxes = [f"fl:{{{shard}}}:outbox" for shard in range(num_shards)]
        self._production = production
        self._timeout_s = timeout_s
        self._retention_ms = max(1, int(retention_s * 1000))
        # Only makes connections; the time limit of a call is the line's.
        pool = ConnectionPool.from_url(url, protocol=2, socket_connect_timeout=timeout_s)
        connections: list[AbstractConnection] = [
            pool.make_connection()  # type: ignore[no-untyped-call]
            for _ in range(3 + _NUM_SPARE_LINES)
        ]
        self._lines = [RedisLine(connection, timeout_s) for connection in connections]
        self._append_line, self._take_line, self._revoked_line, *spare_lines = self._lines
        self._spare_lines: asyncio.LifoQueue[RedisLine] = asyncio.LifoQueue()
        for line in spare_lines:
            self._spare_lines.put_nowait(line)
        self._next_shard = itertools.cycle(range(num_shards))
        self._lease_ms: dict[str, int] = {}
        self._adopts_from_s: dict[str, float] = {}
        self._lost_claims = LostClaims()

    async def __aenter__(self) -> Self:
        try:
            async with self._line() as line:
                await check_durable(line, production=self._production)
            await self._create_groups()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()

    async def ping(self) -> None:
        await self._ask(("PING",))

    async def create(self, meta: SessionMeta, owner: str) -> str:
        session_id = meta.session_id
        try:
            epoch = await self._run(_CREATE, session_id, session_id, *self._claimer(owner), _encode_meta(meta))
        except (StoreUnavailable, asyncio.CancelledError):
            self._lost_claims.add(owner, [session_id])
            raise
        self._lost_claims.discard(owner, session_id)
        if epoch is None:
            raise SessionError(f"session {session_id} exists already")
        return _text(epoch)

    async def claim(
        self, session_id: str, owner: str, *, user_id: str | None = None, client_id: str | None = None
    ) -> LoadedSession:
        expected = {"user_id": user_id, "client_id": client_id}
        whose = [part for name, value in expected.items() if value is not None for part in (name, value)]
        try:
            reply = await self._run(_CLAIM, session_id, session_id, *self._claimer(owner), "", *whose)
        except (StoreUnavailable, asyncio.CancelledError):
            self._lost_claims.add(owner, [session_id])
            raise
        if reply is None:
            raise SessionNotFound(session_id)
        self._lost_claims.discard(owner, session_id)
        return _loaded(reply)

    async def epoch(self, session_id: str) -> str | None:
        key = f"{self._outbox(session_id).removesuffix('outbox')}{session_id}:state"
        (epoch,) = await self._ask(("HGET", key, "epoch"))
        return None if epoch is None else epoch.decode()

    async def is_adopted(self, session_id: str, since: str) -> bool:
        key = f"{self._outbox(session_id).removesuffix('outbox')}{session_id}:state"
        ((epoch, adopted),) = await self._ask(("HMGET", key, "epoch", "adopted"))
        number, _, last = (adopted or b"").partition(b" ")
        return last == epoch and int(number) <= epoch_number(since)

    async def peek(self, session_id: str) -> Glimpse | None:
        key = f"{self._outbox(session_id).removesuffix('outbox')}{session_id}:state"
        ((meta, next_sequence, archived_sequence, owner),) = await self._ask(
            ("HMGET", key, "meta", "next", "archived", "owner")
        )
        if meta is None:
            return None
        return Glimpse(_decode_meta(meta), int(next_sequence), int(archived_sequence), has_owner=owner is not None)

    async def item(self, session_id: str, item_id: str) -> PlacedItem | None:
        key = f"{self._outbox(session_id).removesuffix('outbox')}{session_id}:items"
        (placed,) = await self._ask(("HGET", key, item_id))
        return None if placed is None else decode_placed(placed)

    async def rate(self, session_id: str, item_id: str, feedback: Feedback) -> None:
        key = f"{self._outbox(session_id).removesuffix('outbox')}{session_id}:items"
        for _ in range(_NUM_SWAPS):
            (stored,) = await self._ask(("HGET", key, item_id))
            changed = None if stored is None else rated(decode_placed(stored), feedback)
            if changed is None:
                return
            if await self._run(_SWAP, session_id, session_id, item_id, stored, encode_placed(changed)):
                return
        raise StoreUnavailable(f"item {item_id} of session {session_id} is changed all the time")

    async def renew(self, owner: str, lease_s: float) -> list[str]:
        lease_ms = max(1, int(lease_s * 1000))
        replies = await self._run_everywhere(_RENEW, owner, lease_ms)
        if owner in self._lease_ms and not all(had_lease for had_lease, _ in replies):
            # Redis was away, or we were. The others may have had no chance yet to renew theirs: all would look dead.
            self._adopts_from_s[owner] = asyncio.get_running_loop().time() + lease_s
        self._lease_ms[owner] = lease_ms
        taken = {outbox: ids for outbox, (_, ids) in zip(self._outboxes, replies, strict=True) if ids}
        if taken:
            # Only now they are told: had the reply been lost, the next call would bring them.
            async with self._line() as line:
                await line.run(_TOLD, *((outbox, owner, *ids) for outbox, ids in taken.items()))
        return [_text(session_id) for ids in taken.values() for session_id in ids[::2]]

    async def adopt(self, owner: str, limit: int) -> list[LoadedSession]:
        """As the protocol says; but nothing within a lease's time after the owner's own lease had lapsed."""
        if limit <= 0 or asyncio.get_running_loop().time() < self._adopts_from_s.get(owner, 0.0):
            return []
        owner_of: dict[str, str] = dict.fromkeys(self._lost_claims.take(owner, limit), owner)
        try:
            for found in await self._run_everywhere(_LAPSED, owner, limit):
                owner_of |= zip(map(_text, found[::2]), map(_text, found[1::2]), strict=True)
            calls = [
                (self._outbox(session_id), session_id, *self._claimer(owner), former)
                for session_id, former in itertools.islice(owner_of.items(), limit)
            ]
            if not calls:
                return []
            async with self._line() as line:
                replies = await line.run(_CLAIM, *calls)
        except (StoreUnavailable, asyncio.CancelledError):
            self._lost_claims.add(owner, owner_of)
            raise
        return [
            loaded
            for (_, session_id, *_), reply in zip(calls, replies, strict=True)
            if reply is not None and (loaded := _loaded_if_readable(session_id, reply)) is not None
        ]

    async def surrender(self, owner: str) -> None:
        self._lease_ms.pop(owner, None)
        self._adopts_from_s.pop(owner, None)
        await self._run_everywhere(_SURRENDER, owner)

    async def restore(
        self,
        meta: SessionMeta,
        owner: str,
        epoch: str,
        *,
        next_sequence: int,
        config: bytes,
        items: Sequence[PlacedItem],
    ) -> str | None:
        session_id = meta.session_id
        arguments: list[str | bytes | int] = [session_id, *self._claimer(owner), epoch]
        arguments += [next_sequence, next_sequence - 1, _encode_meta(meta), config]
        for placed in items:
            arguments += [placed.item.id, encode_placed(placed)]
        restored = await self._run(_RESTORE, session_id, *arguments)
        return None if restored is None else _text(restored)

    async def append(self, batch: Sequence[Append]) -> list[AppendStatus]:
        if not batch:
            return []
        if len(self._outboxes) == 1:
            call = append_call(self._outboxes[0], batch)
            if sum(map(len, call)) > MAX_PART_BYTES:
                return await self._append_in_halves(batch)
            (reply,) = await self._append_line.run(APPEND, call)
            return [STATUS[status] for status in reply]
        shards: dict[str, list[int]] = {}
        for index, part in enumerate(batch):
            shards.setdefault(self._outbox(part.session_id), []).append(index)
        calls = [append_call(outbox, [batch[index] for index in indexes]) for outbox, indexes in shards.items()]
        if sum(map(len, itertools.chain.from_iterable(calls))) > MAX_PART_BYTES:
            return await self._append_in_halves(batch)
        replies = await self._append_line.run(APPEND, *calls)
        statuses = {
            index: STATUS[status]
            for indexes, reply in zip(shards.values(), replies, strict=True)
            for index, status in zip(indexes, reply, strict=True)
        }
        return [statuses[index] for index in range(len(batch))]

    async def _append_in_halves(self, batch: Sequence[Append]) -> list[AppendStatus]:
        # Redis closes the connection on more than it takes at once, and would for ever: what is too large alone is refused here.
        if len(batch) == 1:
            return ["too_large"]
        half = len(batch) // 2
        return [*await self.append(batch[:half]), *await self.append(batch[half:])]

    async def journal(self, session_id: str, after: int, limit: int) -> list[JournalEntry]:
        key = f"{self._outbox(session_id).removesuffix('outbox')}{session_id}:journal"
        # An entry's id is its last sequence number, so that one cut by `after` is found.
        (entries,) = await self._ask(("XRANGE", key, f"{after + 1}-0", "+", "COUNT", limit))
        return [
            JournalEntry(int(first), int(at_ms), tuple(events.split(b"\n")))
            for _, (_, first, _, at_ms, _, events) in entries
        ]

    async def trim(self, session_id: str, archived_sequence: int, *, final: bool) -> None:
        retention_ms = self._retention_ms if final else ""
        await self._run(_TRIM, session_id, session_id, archived_sequence, retention_ms)

    async def enqueue(self, records: Sequence[bytes]) -> None:
        if not records:
            return
        outbox = self._outboxes[next(self._next_shard)]
        commands = [("XADD", outbox, "*", "record", record) for record in records]
        await self._ask(("MULTI",), *commands, ("EXEC",))

    async def take(self, consumer: str, limit: int, wait_s: float) -> list[Delivery]:
        """As the protocol says; with several shards, at least one of each that has any. One call at a time."""
        num_each = max(1, limit // len(self._outboxes))
        # BLOCK 0 would be for ever.
        block: Command = ("BLOCK", max(1, math.ceil(wait_s * 1000))) if wait_s > 0 else ()
        streams = (*self._outboxes, *itertools.repeat(">", len(self._outboxes)))
        command = ("XREADGROUP", "GROUP", _GROUP, consumer, "COUNT", num_each, *block, "STREAMS", *streams)
        try:
            (reply,) = await self._take_line.ask(command, wait_s=max(0.0, wait_s))
        except StoreUnavailable as error:
            if "NOGROUP" in str(error):
                # An empty Redis has taken the place of the one we opened; the next call finds its groups.
                await self._create_groups()
            raise
        return [
            Delivery(f"{key.decode()}/{entry_id.decode()}", record, 1)
            for key, entries in reply or ()
            for entry_id, (_, record) in entries
        ]

    async def reclaim(self, consumer: str, limit: int, min_idle_s: float) -> list[Delivery]:
        deliveries: list[Delivery] = []
        for outbox in self._outboxes:
            if len(deliveries) < limit:
                num_wanted = limit - len(deliveries)
                call = (outbox, consumer, int(min_idle_s * 1000), num_wanted)
                async with self._line() as line:
                    (taken,) = await line.run(_RECLAIM, call)
                deliveries += [Delivery(f"{outbox}/{i.decode()}", record, num) for i, record, num in taken]
        return deliveries

    async def acknowledge(self, receipts: Sequence[str]) -> None:
        if not receipts:
            return
        ids: dict[str, list[str]] = {}
        for receipt in receipts:
            outbox, _, entry_id = receipt.partition("/")
            ids.setdefault(outbox, []).append(entry_id)
        # Deleted and acknowledged together: the stream holds only what is not stored yet, which `lag` counts. In this order, since a Redis
        # that cuts a torn log by itself may do the first half only, and what is acknowledged and still there would stay for ever.
        await self._ask(
            *itertools.chain.from_iterable(
                (("MULTI",), ("XDEL", outbox, *entry_ids), ("XACK", outbox, _GROUP, *entry_ids), ("EXEC",))
                for outbox, entry_ids in ids.items()
            )
        )

    async def bury(self, delivery: Delivery, error: str) -> None:
        outbox, _, entry_id = delivery.receipt.partition("/")
        async with self._line() as line:
            await line.run(_BURY, (outbox, entry_id, delivery.record, delivery.num_deliveries, error))

    async def dead(self, limit: int) -> list[DeadLetter]:
        letters = await self._oldest_dead(limit)
        return [
            DeadLetter(fields[b"record"], _text(fields[b"error"]), int(fields[b"deliveries"]))
            for _, _, fields in letters
        ]

    async def revive(self, limit: int) -> int:
        ids: dict[str, list[bytes]] = {}
        for outbox, entry_id, _ in await self._oldest_dead(limit):
            ids.setdefault(outbox, []).append(entry_id)
        if not ids:
            return 0
        calls: list[Command] = [(outbox, *entry_ids) for outbox, entry_ids in ids.items()]
        async with self._line() as line:
            return sum(await line.run(_REVIVE, *calls))

    async def lag(self) -> OutboxLag:
        commands: list[Command] = [("TIME",)]
        for outbox in self._outboxes:
            commands += [("XLEN", outbox), ("XRANGE", outbox, "-", "+", "COUNT", 1), ("XLEN", _dead(outbox))]
        (seconds, microseconds), *replies = await self._ask(*commands)
        now_ms = int(seconds) * 1000 + int(microseconds) // 1000
        oldest_ms = min((int(entries[0][0].partition(b"-")[0]) for entries in replies[1::3] if entries), default=now_ms)
        return OutboxLag(pending=sum(replies[::3]), oldest_s=max(0, now_ms - oldest_ms) / 1000, dead=sum(replies[2::3]))

    async def revoke(self, revocation: Revocation) -> None:
        async with self._line() as line:
            await redis_revocations.revoke(line, revocation)

    async def revocations(self, after: str, wait_s: float) -> Heard:
        return await redis_revocations.revocations(self._revoked_line, after, wait_s)

    async def _oldest_dead(self, limit: int) -> list[tuple[str, bytes, dict[bytes, bytes]]]:
        """The outbox, id and fields of each."""
        if limit <= 0:
            return []
        replies = await self._ask(*(("XRANGE", _dead(outbox), "-", "+", "COUNT", limit) for outbox in self._outboxes))
        letters = [
            (outbox, entry_id, dict(zip(fields[::2], fields[1::2], strict=True)))
            for outbox, entries in zip(self._outboxes, replies, strict=True)
            for entry_id, fields in entries
        ]
        letters.sort(key=lambda letter: tuple(map(int, letter[1].split(b"-"))))
        return letters[:limit]

    def _claimer(self, owner: str) -> tuple[str, int]:
        """The owner, and how long it is known to live from now on: not at all before it renewed its lease."""
        return owner, self._lease_ms.get(owner, 0)

    def _outbox(self, session_id: str) -> str:
        return self._outboxes[zlib.crc32(session_id.encode()) % len(self._outboxes)]

    @asynccontextmanager
    async def _line(self) -> AsyncIterator[RedisLine]:
        try:
            async with asyncio.timeout(self._timeout_s):
                line = await self._spare_lines.get()
        except TimeoutError as error:
            raise StoreUnavailable("Redis does not answer: every connection waits for it") from error
        try:
            yield line
        finally:
            self._spare_lines.put_nowait(line)

    async def _ask(self, *commands: Command) -> list[Any]:
        async with self._line() as line:
            return await line.ask(*commands)

    async def _run(self, script: Script, session_id: str, *arguments: str | bytes | int) -> Any:
        async with self._line() as line:
            (reply,) = await line.run(script, (self._outbox(session_id), *arguments))
            return reply

    async def _run_everywhere(self, script: Script, *arguments: str | bytes | int) -> list[Any]:
        """The reply of each shard."""
        async with self._line() as line:
            calls: list[Command] = [(outbox, *arguments) for outbox in self._outboxes]
            return await line.run(script, *calls)

    async def _create_groups(self) -> None:
        for outbox in self._outboxes:
            try:
                await self._ask(("XGROUP", "CREATE", outbox, _GROUP, "0", "MKSTREAM"))
            except StoreUnavailable as error:
                if "BUSYGROUP" not in str(error):
                    raise

    async def _close(self) -> None:
        for line in self._lines:
            await line.close()


def _text(reply: bytes) -> str:
    return reply.decode()


def _dead(outbox: str) -> str:
    return outbox.removesuffix("outbox") + "dead"


def _loaded(reply: Sequence[Sequence[bytes]]) -> LoadedSession:
    """What `redis_scripts.CLAIM` answered."""
    state, items = (dict(zip(flat[::2], flat[1::2], strict=True)) for flat in reply)
    return LoadedSession(
        meta=_decode_meta(state[b"meta"]),
        epoch=_text(state[b"epoch"]),
        next_sequence=int(state[b"next"]),
        archived_sequence=int(state[b"archived"]),
        config=state.get(b"config", b""),
        items=tuple(sorted(map(decode_placed, items.values()), key=lambda placed: (placed.rank, placed.item.id))),
    )


def _loaded_if_readable(session_id: str, reply: Sequence[Sequence[bytes]]) -> LoadedSession | None:
    try:
        return _loaded(reply)
    except UNREADABLE:
        _log.exception("session.not_adopted", session_id=session_id)
        return None
