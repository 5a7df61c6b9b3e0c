"""Which answer said what: the messages in a prediction's output, by the ids under which people rate them."""

from collections.abc import Collection

import msgspec
from msgspec import Struct
from sqlalchemy import String, and_, cast, func, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.documents import unquoted
from persistence.tables import answer_items, predictions, traces

_MAX_ID_CHARS = 64


class AnswerItem(Struct, frozen=True):
    """A row of `answer_items`."""

    session_id: str
    item_id: str
    response_id: str


class _OutputItem(Struct, frozen=True):
    id: str = ""
    type: str = ""


_decode_output = msgspec.json.Decoder(list[_OutputItem]).decode


def message_ids(output: str) -> list[str]:
    """The ids of the messages in the JSON of a prediction's output."""
    try:
        items = _decode_output(unquoted(output))
    except (msgspec.DecodeError, RecursionError):
        return []
    return [item.id for item in items if item.type == "message" and 0 < len(item.id) <= _MAX_ID_CHARS]


async def unlisted_items(connection: AsyncConnection, wanted: Collection[tuple[str, str]]) -> list[AnswerItem]:
    """The rows of these sessions' items that `answer_items` lacks although their predictions are there.

    A release before that table left them so, and may go on doing it while this one already runs.
    """
    if not wanted:
        return []
    listed = await connection.execute(
        select(answer_items.c.session_id, answer_items.c.item_id).where(
            tuple_(answer_items.c.session_id, answer_items.c.item_id).in_(sorted(wanted))
        )
    )
    missing = set(wanted) - {(row.session_id, row.item_id) for row in listed}
    response_ids = await _untraced(connection, {session_id for session_id, _ in missing})
    if not response_ids:
        return []
    named = [
        and_(predictions.c.session_id == session_id, func.instr(cast(predictions.c.output, String), item_id) > 0)
        for session_id, item_id in sorted(missing)
    ]
    rows = await connection.execute(
        select(predictions.c.session_id, predictions.c.response_id, predictions.c.output).where(
            predictions.c.response_id.in_(response_ids), or_(*named)
        )
    )
    return [
        AnswerItem(row.session_id, item_id, row.response_id)
        for row in rows
        for item_id in message_ids(row.output)
        if (row.session_id, item_id) in missing
    ]


async def _untraced(connection: AsyncConnection, session_ids: Collection[str]) -> list[str]:
    """The answers that such a release stored: it knew no traces either.

    Only these are read. Whoever rates what is no answer, again and again, would have all that his session ever said searched for it.
    """
    if not session_ids:
        return []
    is_traced = and_(traces.c.session_id == predictions.c.session_id, traces.c.response_id == predictions.c.response_id)
    rows = await connection.execute(
        select(predictions.c.response_id)
        .select_from(predictions.outerjoin(traces, is_traced))
        .where(predictions.c.session_id.in_(sorted(session_ids)), traces.c.response_id.is_(None))
    )
    return list(rows.scalars())
