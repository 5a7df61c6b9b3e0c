"""Ratings of many users over connections that break: whatever is shuffled, doubled or lost, each user's last choice is the row. P3, P4."""

import asyncio
import random
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from msgspec import Struct, structs
from sqlalchemy import select

from persistence.tables import answer_items, feedback
from persistence.times import milliseconds
from server.settings import Settings
from sessions.feedback import Rating, feedback_id
from sessions.redis_store import RedisStore
from tests.end_to_end.client import DELTA, Client, open_client
from tests.end_to_end.conftest import Backends
from tests.end_to_end.processes import FluemanProcess, running, token_of
from tests.end_to_end.stored import STORE_TIMEOUT_S, Records, until_empty
from tests.sessions.builders import Json, user_item

NUM_USERS = 200
NUM_SESSIONS_EACH = 2
NUM_CHOICES_EACH = 8  # of one answer
NUM_MESSAGES = 10_000
NUM_AT_ONCE = 24
FIRST_CHOICE_MS = 1_795_000_000_000
REASONS = [None, *Settings.model_fields["feedback_reasons"].default]
WITHDRAWAL = "withdrawal"
FENCE = "fence"


class Choice(Struct, frozen=True):
    """What a user thought of an answer at one time; no rating: no more."""

    item_id: str
    rated_at_ms: int
    rating: Rating | None
    reason: str | None
    comment: str | None


class Rater:
    """One session of a user, who changes its mind; its connection is lost in between, and what got lost with it is sent again."""

    def __init__(self, user: str, ports: list[int], chance: random.Random) -> None:
        self.user = user
        self.session_id = ""
        self.num_sent = 0
        self.last: dict[str, Choice] = {}
        self._ports = ports
        self._chance = chance
        self._choices: list[Choice] = []
        self._view: dict[str, tuple[Rating | None, int | None]] = {}

    async def rate(self) -> None:
        """Talk, then send every choice in any order, some twice and some never, until the server is known to hold the last of each."""
        async with AsyncExitStack() as stack:
            client = await self._open(stack)
            waiting = self._messages(self._choices)
            is_first = True
            while waiting:
                cut_at = self._chance.randrange(len(waiting)) if is_first or self._chance.random() < 0.3 else None
                await self._send(client, waiting[:cut_at])
                if cut_at is not None:
                    client.cut()
                    client = await self._resume(stack, client)
                await self._catch_up(client)
                waiting = self._messages([choice for choice in self._choices if not self._is_settled(choice.item_id)])
                is_first = False
            await client.close()

    async def _open(self, stack: AsyncExitStack) -> Client:
        """A session with an answer that is done and one that streams, which is rated meanwhile."""
        client = await stack.enter_async_context(open_client(self._port(), token_of(self.user)))
        self.session_id = client.session_id
        await client.send("session.update", session={"type": "realtime", "resumption": {"enabled": True}})
        await client.until("session.updated")
        done = await client.ask("[echo Hello there]")
        await client.send("conversation.item.create", item=user_item("[pace 100] [tokens 20] go on"))
        await client.send("response.create")
        streaming = (await client.until(DELTA))["item_id"]
        for item_id in (done["output"][0]["id"], streaming):
            self._choose(item_id)
        return client

    def _choose(self, item_id: str) -> None:
        chance = self._chance
        for number in range(NUM_CHOICES_EACH):
            rating: Rating | None = (
                chance.choice(["up", "down"]) if number == 0 else chance.choice(["up", "down", None])
            )
            reason = chance.choice(REASONS) if rating else None
            comment = f'{number} "<b>\\ \u2028 喜 👍🏽' if rating and chance.random() < 0.5 else None
            choice = Choice(item_id, FIRST_CHOICE_MS + number, rating, reason, comment)
            self._choices.append(choice)
            self.last[item_id] = choice

    def _messages(self, choices: list[Choice]) -> list[Choice]:
        """Each one to three times, in any order."""
        messages = [choice for choice in choices for _ in range(self._chance.randint(1, 3))]
        self._chance.shuffle(messages)
        return messages

    async def _send(self, client: Client, choices: list[Choice]) -> None:
        for choice in choices:
            self.num_sent += 1
            if self._chance.random() < 0.1:
                continue  # lost on the way
            if choice.rating is None:
                rating_id = feedback_id(self.session_id, choice.item_id, self.user)
                await client.send(
                    "avatar.feedback.delete", feedback_id=rating_id, rated_at_ms=choice.rated_at_ms, event_id=WITHDRAWAL
                )
                continue
            fields: Json = {"rating": choice.rating, "rated_at_ms": choice.rated_at_ms}
            fields |= {"reason": choice.reason, "comment": choice.comment}
            await client.send("avatar.feedback.create", item_id=choice.item_id, feedback=fields)

    async def _resume(self, stack: AsyncExitStack, old: Client) -> Client:
        """The next connection, to any node, from where the last one's events were read to."""
        after = old.events[-1]["sequence_number"]
        conversation_id = self.session_id.replace("sess_", "conv_")
        resuming = (conversation_id, after)
        client = await stack.enter_async_context(open_client(self._port(), token_of(self.user), resuming=resuming))
        assert client.events[0]["session"]["resumption"] == {"enabled": True, "resumed": True, "gap": False}
        return client

    async def _catch_up(self, client: Client) -> None:
        """Read until all that was sent is answered, and note what the server says of each answer last."""
        await client.send("conversation.item.retrieve", item_id=FENCE, event_id=FENCE)
        while True:
            event = await client.next()
            match event["type"]:
                case "avatar.feedback.created":
                    told = event["feedback"]
                    self._view[told["item_id"]] = (told["rating"], told["rated_at_ms"])
                case "avatar.feedback.deleted":
                    self._view[event["item_id"]] = (None, None)
                case "error" if event["error"]["event_id"] == FENCE:
                    return
                case "error":  # withdrawn before it was given
                    assert event["error"]["event_id"] == WITHDRAWAL, event

    def _is_settled(self, item_id: str) -> bool:
        last = self.last[item_id]
        return self._view.get(item_id) == (last.rating, last.rated_at_ms if last.rating else None)

    def _port(self) -> int:
        return self._chance.choice(self._ports)


def what_it_says(choice: Choice) -> Choice:
    """Which of two withdrawals in a row was the last a client is not told, and need not be."""
    return choice if choice.rating else structs.replace(choice, rated_at_ms=0)


@pytest.fixture
def nodes(backends: Backends, tmp_path: Path) -> Iterator[list[FluemanProcess]]:
    """Two nodes, of which one stores what there is to store."""
    # Nobody dies here: on a busy machine a node may be late to say that it lives.
    settings = {**backends.settings, "FLUEMAN_LEASE_S": "20"}
    first = FluemanProcess(tmp_path / "first", settings, "serve")
    second = FluemanProcess(tmp_path / "second", {**settings, "FLUEMAN_WRITER": "none"}, "serve")
    with running(first, second):
        yield [first, second]


async def test_of_ten_thousand_ratings_each_users_last_choice_is_the_row(
    nodes: list[FluemanProcess], backends: Backends, records: Records, chance: random.Random
) -> None:
    """P3, P4: shuffled, doubled, lost with their connection and sent again, to one node and the other."""
    ports = [node.port for node in nodes]
    raters = [
        Rater(f"user-{number}", ports, random.Random(chance.random()))
        for number in range(NUM_USERS)
        for _ in range(NUM_SESSIONS_EACH)
    ]
    room = asyncio.Semaphore(NUM_AT_ONCE)

    async def rate(rater: Rater) -> None:
        async with room:
            await rater.rate()

    async with asyncio.TaskGroup() as tasks:
        for rater in raters:
            tasks.create_task(rate(rater))
    async with RedisStore(backends.redis.url, timeout_s=STORE_TIMEOUT_S) as store:
        await until_empty(store)
    async with records.database.snapshot() as connection:
        rows = (await connection.execute(select(feedback))).all()
        answers = {(row.session_id, row.item_id) for row in await connection.execute(select(answer_items))}

    chosen = {
        (rater.session_id, item_id, rater.user): what_it_says(choice)
        for rater in raters
        for item_id, choice in rater.last.items()
    }
    held = {
        (row.session_id, row.item_id, row.user_id): what_it_says(
            Choice(row.item_id, milliseconds(row.rated_at), row.rating, row.reason, row.comment)
        )
        for row in rows
    }
    assert sum(rater.num_sent for rater in raters) >= NUM_MESSAGES
    assert held == chosen
    assert len(rows) == NUM_USERS * NUM_SESSIONS_EACH * 2
    assert {row.role for row in rows} == {"user"}
    assert {(session_id, item_id) for session_id, item_id, _ in chosen} <= answers
    assert [node.errors() for node in nodes] == [[], []]
