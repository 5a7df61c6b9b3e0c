"""A client that talks like an avatar's frontend that resumes: whatever breaks, it comes back to some node and goes on where it was.

What it had sent when a connection broke may or may not have been taken. It asks for something that is answered in any case (an item that
does not exist); by then it has seen all that came before, and sends again only what is not there.
"""

import asyncio
import contextlib
import itertools
import json
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from msgspec import Struct
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from tests.end_to_end.processes import token_of
from tests.faults.ledger import Ledger
from tests.faults.stream import ASK, Answer, Json

T = TypeVar("T")

_FIRST_RETRY_S = 0.05
_LAST_RETRY_S = 0.6
_OPEN_S = 4.0
# Longer than the longest pause of a script, so that silence means that something is broken.
_SILENCE_S = 4.0
_RETRIED_CODES = ("server_error", "rate_limit_exceeded")
_NORMAL = 1000
_CLOCK_SLACK_S = 3600


class Habits(Struct, frozen=True):
    """How a talker talks; chances are from 0 to 1."""

    most_turns: int = 6
    most_tokens: int = 50
    paces: tuple[int, ...] = (30, 80, 200)
    cancels: float = 0.2
    truncates: float = 0.3
    deletes: float = 0.15
    drops: float = 0.1
    abandons: float = 0.1
    patience_s: float = 90.0


class Broken(Exception):
    """The connection is gone; resume."""


class Given(Exception):
    """The session is given up; the ledger says why, or it was meant so."""


class Talker:
    """Talks session after session until told to stop. `ports` are where the nodes listen."""

    def __init__(self, name: str, ports: Sequence[int], chance: random.Random, habits: Habits | None = None) -> None:
        self.ledgers: list[Ledger] = []
        self.moved_s: list[float] = []
        # Why connections broke or were not to be had, for whoever must find out.
        self.diary: list[str] = []
        self._name = name
        self._ports = ports
        self._chance = chance
        self._habits = habits or Habits()
        self._numbers = itertools.count(1)
        self._socket: ClientConnection | None = None
        self._ledger = Ledger(name)
        self._is_stopping = False

    @property
    def ledger(self) -> Ledger:
        """Of the session that is talked now."""
        return self._ledger

    def stop(self) -> None:
        """Begin no further turn."""
        self._is_stopping = True

    async def talk(self) -> None:
        """Sessions until `stop`; the last one ends with its turn."""
        while not self._is_stopping:
            with contextlib.suppress(Given):
                await self.converse(self._chance.randint(1, self._habits.most_turns))
                await self.leave()

    async def converse(self, num_turns: int) -> None:
        """A new session of so many turns."""
        await self.begin()
        for _ in range(num_turns):
            if self._is_stopping:
                break
            await self.turn()

    async def begin(self) -> None:
        """A new session that can be resumed."""
        while True:
            self._ledger = Ledger(self._name)
            await self._connect()
            event = {"type": "session.update", "session": {"type": "realtime", "resumption": {"enabled": True}}}
            try:
                await self._send(event)
                while not self._ledger.is_numbered:
                    await self._next()
                return
            except Broken:
                # Nobody knows yet that this session can be resumed. What it has said so far counts all the same.
                continue

    async def turn(self) -> Answer | None:
        """One turn, with all that a user does to it; the answer, if it was seen."""
        habits, chance = self._habits, self._chance
        item_id = await self.say(
            f"[tokens {chance.randint(1, habits.most_tokens)}] [pace {chance.choice(habits.paces)}] {self._name} {self._next_name()}"
        )
        answer = await self.ask()
        if answer is None:
            return None
        if chance.random() < habits.drops:
            await self.hear(answer, chance.randint(0, 5))
            self.drop()
        if chance.random() < habits.cancels:
            await self.hear(answer, chance.randint(0, 10))
            await self.cancel(answer)
        await self.ended(answer)
        if answer.item_id is not None and answer.text and chance.random() < habits.truncates:
            await self.truncate(answer.item_id, chance.randint(0, len(answer.text)))
        if chance.random() < habits.deletes:
            await self.delete(chance.choice([item_id, answer.item_id or item_id]))
        return answer

    async def say(self, text: str) -> str:
        """Add a user's message, whose id is ours; returns when it is acknowledged."""
        item_id = f"item_{self._name}_{self._next_name()}"
        self._ledger.said[item_id] = text
        content = [{"type": "input_text", "text": text}]
        item = {"id": item_id, "type": "message", "role": "user", "content": content}

        def is_there() -> bool | None:
            return item_id in self._ledger.stream.users or None

        await self._insist(
            {"type": "conversation.item.create", "item": item}, is_there, "item_create_duplicate_item_id"
        )
        if item_id not in self._ledger.stream.users and not self._ledger.gaps:
            self._ledger.complain("lost", f"item {item_id} is there, but was never told of")
        return item_id

    async def ask(self) -> Answer | None:
        """Ask for an answer; it has begun. None when it came and went in a declared gap."""
        name = f"{self._name}-{self._next_name()}"
        event = {"type": "response.create", "response": {"metadata": {ASK: name}}}
        num_gaps = len(self._ledger.gaps)

        def begun() -> Answer | bool | None:
            return self._ledger.stream.asks.get(name) or (len(self._ledger.gaps) > num_gaps) or None

        found = await self._insist(event, begun)
        return found if isinstance(found, Answer) else None

    async def ended(self, answer: Answer) -> None:
        """Wait until the answer has ended."""

        def status() -> str | None:
            return self._now(answer).status

        await self._insist(None, status)

    async def cancel(self, answer: Answer) -> None:
        """Stop the answer; it has ended, if only by itself."""
        event = {"type": "response.cancel", "response_id": answer.response_id}

        def status() -> str | None:
            return self._now(answer).status

        await self._insist(event, status, "response_cancel_not_active")

    async def truncate(self, item_id: str, char_end: int) -> None:
        """Tell how much of an answer was heard."""
        event = {"type": "avatar.item.truncate", "item_id": item_id, "content_index": 0, "char_end": char_end}

        def is_cut() -> bool | None:
            return self._ledger.stream.heard.get(item_id) == char_end or None

        await self._insist(event, is_cut, "invalid_value", "item_truncate_invalid_item_id")

    async def delete(self, item_id: str) -> None:
        """Delete an item."""

        def is_gone() -> bool | None:
            return item_id in self._ledger.stream.deleted or None

        await self._insist(
            {"type": "conversation.item.delete", "item_id": item_id}, is_gone, "item_delete_invalid_item_id"
        )

    async def come_back(self) -> None:
        """Resume, and say nothing yet."""
        while self._socket is None:
            with contextlib.suppress(Broken):
                await self._resume()

    async def leave(self) -> None:
        """End the session, or leave it to its fate."""
        if self._chance.random() < self._habits.abandons:
            self.drop()
        else:
            await self.close()

    async def close(self) -> None:
        """End the session in good order, as far as the connection is still there."""
        socket, self._socket = self._socket, None
        if socket is not None:
            with contextlib.suppress(OSError):
                await socket.close(_NORMAL)

    def drop(self) -> None:
        """Break the connection as a dead network does."""
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.transport.abort()

    def lose_touch(self) -> ClientConnection:
        """Leave the connection open and silent, as when a network has lost its way; the next event goes over another."""
        socket, self._socket = self._socket, None
        assert socket is not None
        return socket

    def move(self, ports: Sequence[int]) -> None:
        """Connect only to these from now on."""
        self._ports = ports

    async def hear(self, answer: Answer, num_events: int) -> None:
        """Wait for so many events, or the end of the answer."""
        seen = self._ledger.last

        def is_heard() -> bool | None:
            return self._ledger.last - seen >= num_events or self._now(answer).status is not None or None

        await self._insist(None, is_heard)

    def _now(self, answer: Answer) -> Answer:
        """The answer as it is known now: after a declared gap it may be told anew, or have ended unseen."""
        known = self._ledger.stream.answers.get(answer.response_id)
        if known is None:
            return Answer(answer.response_id, answer.ask, answer.expected, status="unseen")
        return known

    async def _insist(self, event: Json | None, result: Callable[[], T | None], *fine_codes: str) -> T | None:
        """Send and wait until there is a result, over as many connections as it takes; whatever it is when a refusal has a fine code."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._habits.patience_s
        is_sent = event is None
        event_id = ""
        retry_s = _FIRST_RETRY_S
        while True:
            if loop.time() > deadline_s:
                what = "an answer does not go on" if event is None else f"{event['type']} has no effect"
                self._give_up(f"{what} within {self._habits.patience_s:.0f} s")
            try:
                if self._socket is None:
                    await self._resume()
                    if is_sent and event is not None:
                        # All that the old connection brought about comes before the answer to this.
                        await self._reach_now()
                        is_sent = False
                if (found := result()) is not None:
                    return found
                if not is_sent and event is not None:
                    event_id = f"talker_{self._name}_{self._next_name()}"
                    is_sent = True
                    await self._send({**event, "event_id": event_id})
                await self._next()
                if (error := self._ledger.stream.errors.pop(event_id, None)) is not None:
                    if error["code"] in fine_codes:
                        return result()
                    if error["code"] not in _RETRIED_CODES:
                        assert event is not None
                        self._ledger.complain("diverged", f"{event['type']} is refused: {error}")
                        self.drop()
                        raise Given
                    is_sent = False
                    await asyncio.sleep(retry_s * self._chance.uniform(0.5, 1.0))
                    retry_s = min(retry_s * 2, _LAST_RETRY_S)
            except Broken:
                continue

    async def _reach_now(self) -> None:
        while True:
            event_id = f"now_{self._name}_{self._next_name()}"
            await self._send({"type": "conversation.item.retrieve", "item_id": "item_nowhere", "event_id": event_id})
            while event_id not in self._ledger.stream.errors:
                await self._next()
            if self._ledger.stream.errors.pop(event_id)["code"] not in _RETRIED_CODES:
                return
            await asyncio.sleep(_LAST_RETRY_S)

    async def _resume(self) -> None:
        if not self._ledger.is_numbered:
            raise Given
        await self._connect(after=self._ledger.last)

    async def _connect(self, *, after: int | None = None) -> None:
        """Some node takes us in. `after` is None for a new session."""
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        retry_s = _FIRST_RETRY_S
        while True:
            try:
                await self._connect_to(self._chance.choice(self._ports), after)
                if after is not None:
                    self.moved_s.append(loop.time() - begin_s)
                return
            except Broken as why:
                self._note(f"not connected: {why}")
            if loop.time() - begin_s > self._habits.patience_s:
                kind = "a new session cannot be had" if after is None else "the session cannot be resumed"
                self._give_up(f"{kind} within {self._habits.patience_s:.0f} s")
            if after is None and self._is_stopping:
                raise Given
            await asyncio.sleep(retry_s * self._chance.uniform(0.5, 1.0))
            retry_s = min(retry_s * 2, _LAST_RETRY_S)

    def _give_up(self, why: str) -> None:
        self._ledger.complain("stuck", why)
        if self._ledger not in self.ledgers:
            self.ledgers.append(self._ledger)
        raise Given

    async def _connect_to(self, port: int, after: int | None) -> None:
        url = f"ws://127.0.0.1:{port}/v1/realtime?model=demo"
        if after is not None:
            url += f"&conversation_id={self._ledger.conversation_id}&starting_after={after}"
        options: dict[str, Any] = {"compression": None, "max_size": None, "proxy": None}
        try:
            self._socket = await connect(
                url,
                additional_headers={"authorization": f"Bearer {_token_of(self._name)}"},
                open_timeout=_OPEN_S,
                close_timeout=0.3,
                ping_interval=None,
                **options,
            )
        except InvalidStatus as refused:
            status = refused.response.status_code
            if status == 404 and after is not None:
                self._ledger.complain("lost", f"the session is unknown to port {port}")
                raise Given from refused
            if status not in (429, 500, 502, 503, 504):
                self._ledger.complain("diverged", f"the upgrade is answered {status}")
                raise Given from refused
            raise Broken(f"{port} answers {status}") from refused
        except (OSError, InvalidHandshake, TimeoutError, EOFError) as error:
            raise Broken(f"{port} {error!r}") from error
        frame = await self._frame()
        if after is not None:
            self._ledger.resume(frame)
            return
        self._ledger.begin(frame)
        self.ledgers.append(self._ledger)

    async def _send(self, event: Json) -> None:
        assert self._socket is not None
        try:
            async with asyncio.timeout(_SILENCE_S):
                await self._socket.send(json.dumps(event))
        except (ConnectionClosed, TimeoutError) as error:
            self.drop()
            raise Broken from error

    async def _next(self) -> Json:
        return self._ledger.take(await self._frame())

    async def _frame(self) -> bytes:
        socket = self._socket
        if socket is None:
            raise Broken
        try:
            async with asyncio.timeout(_SILENCE_S):
                return await socket.recv(decode=False)
        except (ConnectionClosed, TimeoutError) as error:
            self._note(f"broken after {self._ledger.last}: {error!r}")
            self.drop()
            raise Broken(repr(error)) from error

    def _note(self, text: str) -> None:
        time_of_day = datetime.now(UTC).strftime("%H:%M:%S.%f")[:-3]
        self.diary.append(f"{time_of_day} {self._name} {self._ledger.session_id} {text}")

    def _next_name(self) -> str:
        return str(next(self._numbers))


def _token_of(subject: str) -> str:
    """An access token that is good also where the clock goes wrong."""
    return token_of(subject, age_s=_CLOCK_SLACK_S, ttl_s=4 * _CLOCK_SLACK_S)
