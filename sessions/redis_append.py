"""One append to Redis: how a batch is laid out for the script, and what its answer means. The live path."""

from collections.abc import Sequence

import msgspec

from sessions import redis_scripts
from sessions.redis_line import Script
from sessions.store import Append, AppendStatus

APPEND = Script(redis_scripts.APPEND)
STATUS: dict[int, AppendStatus] = {
    ord("o"): "ok",
    ord("d"): "dup",
    ord("g"): "gap",
    ord("f"): "fenced",
    ord("l"): "gone",
}

_pack_header = msgspec.msgpack.Encoder().encode


def append_call(outbox: str, batch: Sequence[Append]) -> tuple[str | bytes, ...]:
    """The key and arguments of `APPEND`: kept flat, and short for a session with events only."""
    header: list[object] = []
    blobs: list[bytes] = []
    for part in batch:
        first = part.first_sequence
        after = first + len(part.events)
        blobs.append(b"\n".join(part.events))
        if part.records or part.saved_items or part.dropped_items or part.config is not None or part.ends:
            saved_ids = tuple(part.saved_items)
            extras: object = (len(part.records), part.dropped_items, saved_ids, part.config is not None, part.ends)
            blobs += part.records
            blobs += part.saved_items.values()
            if part.config is not None:
                blobs.append(part.config)
        else:
            extras = False
        header += (
            part.session_id,
            part.epoch,
            str(first),
            str(after - 1),
            str(after),
            str(part.at_ms),
            extras,
        )
    return (outbox, _pack_header(header), *blobs)
