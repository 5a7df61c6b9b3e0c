"""What became of the sessions: the tables, the archive, the journal and Redis, each compared with what the clients saw."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

import redis
from msgspec import Struct
from msgspec.json import decode
from sqlalchemy import func, select

from persistence.archive import Archive, open_archive
from persistence.database import Database, open_database
from persistence.history import StoredPrediction, archived_events, load_dialogue
from persistence.tables import archives, predictions, sessions, turns
from sessions.store import Store
from tests.end_to_end.client import Client
from tests.sessions.builders import Json

PATIENCE_S = 60.0
STORE_TIMEOUT_S = 10.0  # a busy machine's disk may take seconds for an fsync
_KEY = re.compile(r"fl:\{\d+\}:(?P<session_id>sess_\w+):(?P<part>state|items|journal)")


class Counts(Struct, frozen=True):
    """Rows of the tables. Stubs count: at the end there must be none."""

    num_sessions: int
    num_ended: int
    num_turns: int
    num_predictions: int
    num_archived: int


class Records:
    """The tables and the archive of one installation."""

    def __init__(self, database: Database, archive: Archive) -> None:
        self.database = database
        self.archive = archive

    async def counts(self) -> Counts:
        """How much is stored."""
        queries = (
            select(func.count()).select_from(sessions),
            select(func.count()).select_from(sessions).where(sessions.c.status == "ended"),
            select(func.count()).select_from(turns),
            select(func.count()).select_from(predictions),
            select(func.count(archives.c.session_id.distinct())).where(archives.c.stored_at.is_not(None)),
        )
        async with self.database.snapshot() as connection:
            return Counts(*[(await connection.execute(query)).scalar_one() for query in queries])

    async def until_ended(self, num_sessions: int) -> None:
        """Wait until that many sessions have ended and are archived."""

        async def is_over() -> bool:
            counts = await self.counts()
            return (counts.num_ended, counts.num_archived) == (num_sessions, num_sessions)

        await until(is_over)

    async def until_over(self, session_id: str) -> Sequence[StoredPrediction]:
        """Wait until that session is over, ended or idle, and archived; its predictions."""

        async def is_over() -> bool:
            query = select(sessions.c.status, func.count(archives.c.stored_at)).select_from(
                sessions.outerjoin(archives)
            )
            async with self.database.snapshot() as connection:
                row = (
                    await connection.execute(
                        query.where(sessions.c.session_id == session_id).group_by(sessions.c.status)
                    )
                ).first()
            return row is not None and row[0] in ("ended", "idle") and row[1] > 0

        await until(is_over)
        stored = await load_dialogue(self.database, session_id)
        assert stored is not None
        return stored.predictions

    async def check_rows(self, client: Client) -> None:
        """Each turn and each prediction that the client saw is there, as it saw it, exactly once; and nothing else is."""
        stored = await load_dialogue(self.database, client.session_id)
        assert stored is not None
        assert [turn.text for turn in stored.turns] == client.said
        assert [turn.item_id for turn in stored.turns] == client.acknowledged
        assert [turn.number for turn in stored.turns] == list(range(1, len(client.said) + 1))
        assert len(stored.predictions) == len(client.answers)
        by_id = {prediction.response_id: prediction for prediction in stored.predictions}
        for response in client.answers:
            prediction = by_id[response["id"]]
            assert prediction.status == response["status"]
            assert prediction.text == text_of(response) == client.streamed(response["id"])
            assert [entry["id"] for entry in decode(prediction.output)] == [entry["id"] for entry in response["output"]]
            assert prediction.turn_id in {turn.turn_id for turn in stored.turns}

    async def check_archive(self, client: Client) -> None:
        """The archive replays the very bytes that the client received, from the first event to the last."""
        events = [event async for event in archived_events(self.database, self.archive, client.session_id)]
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        assert [event.event for event in events] == client.frames

    async def check_archived_so_far(self, client: Client) -> None:
        """The archive begins with the very bytes that the client received; there may be more, which it did not live to see."""
        events = [event async for event in archived_events(self.database, self.archive, client.session_id)]
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        assert [event.event for event in events][: len(client.frames)] == client.frames

    async def check_kept(self, client: Client) -> None:
        """What was acknowledged to the client is in the tables exactly once; what was not may be there, but not twice."""
        stored = await load_dialogue(self.database, client.session_id)
        assert stored is not None, "a session that was acknowledged is lost"
        item_ids = [turn.item_id for turn in stored.turns]
        assert item_ids[: len(client.acknowledged)] == client.acknowledged
        assert len(set(item_ids)) == len(item_ids)
        assert [turn.text for turn in stored.turns] == client.said[: len(item_ids)]
        texts = {prediction.response_id: prediction.text for prediction in stored.predictions}
        assert len(texts) == len(stored.predictions)
        for response in client.answers:
            assert texts[response["id"]] == text_of(response)


@asynccontextmanager
async def open_records(database_url: str, archive_url: str) -> AsyncIterator[Records]:
    """The tables and the archive at these URLs."""
    async with open_database(database_url, timeout_s=10.0) as database, open_archive(archive_url) as archive:
        yield Records(database, archive)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something in another process is so; it sends us no signal."""
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def until_empty(store: Store) -> None:
    """Wait until every record of the outbox is stored; none may have been given up."""

    async def is_empty() -> bool:
        lag = await store.lag()
        assert lag.dead == 0, "records were buried"
        return lag.pending == 0

    await until(is_empty)


async def journaled(store: Store, session_id: str) -> list[bytes]:
    """The events that the journal holds now."""
    return [event for entry in await store.journal(session_id, 0, 100_000) for event in entry.events]


async def check_write_ahead(store: Store, clients: Iterable[Client]) -> None:
    """Every event that any client received is in the journal, byte for byte."""
    for client in clients:
        held = await journaled(store, client.session_id)
        assert held[: len(client.frames)] == client.frames


def check_redis(url: str, session_ids: Sequence[str]) -> None:
    """Nothing is left but what ended sessions keep for their retention, and an outbox with nothing in it."""
    with redis.Redis.from_url(url) as connection:
        keys = [key.decode() for key in connection.scan_iter(count=1000)]
        for key in keys:
            if key.endswith(":outbox"):
                assert connection.xlen(key) == 0
                continue
            if key.endswith(":owners"):  # the nodes that run; what a session of theirs leaves is looked for below
                continue
            match = _KEY.fullmatch(key)
            assert match, f"{key} is nobody's"
            assert match["session_id"] in session_ids
            assert match["part"] != "journal", "what is archived is trimmed"
            assert connection.pttl(key) > 0, f"{key} stays for ever"
    kept = {key.split(":")[2] for key in keys if key.endswith(":state")}
    assert kept == set(session_ids)


def text_of(response: Json) -> str:
    """What a response says."""
    contents = [part for item in response["output"] for part in item.get("content", ())]
    return "".join(part["text"] for part in contents)
