"""Someone who rates answers on the page, and what the server keeps of it."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import NamedTuple

from playwright.async_api import Locator, expect

from tests.browser.conftest import Server
from tests.browser.person import Person
from tests.browser.talk import Wire

CREATE = "avatar.feedback.create"
CREATED = "avatar.feedback.created"
DELETE = "avatar.feedback.delete"
DELETED = "avatar.feedback.deleted"
_PATIENCE_S = 20


class Rating(NamedTuple):
    """A row of the table, as far as a person made it."""

    rating: str | None
    reason: str | None = None
    comment: str | None = None


class Thumbs:
    """The thumbs of one answer, by their roles and names."""

    def __init__(self, answer: Locator) -> None:
        self.group = answer.get_by_role("group", name="Rate the answer")
        self.up = self.group.get_by_role("button", name="Good answer")
        self.down = self.group.get_by_role("button", name="Bad answer")
        self.more = self.group.locator(".more")
        self.progress = self.group.locator(".progress")
        self.panel = answer.get_by_role("form", name="More about your rating")
        self.comment = self.panel.get_by_role("textbox")
        self.send = self.panel.get_by_role("button", name="Send")

    def reason(self, name: str) -> Locator:
        """The button of that reason."""
        return self.panel.get_by_role("button", name=name)

    async def expect_pressed(self, thumb: str | None) -> None:
        """Exactly this one is pressed."""
        await expect(self.up).to_have_attribute("aria-pressed", str(thumb == "up").lower())
        await expect(self.down).to_have_attribute("aria-pressed", str(thumb == "down").lower())


async def converse(person: Person, *, num_turns: int = 1) -> list[Locator]:
    """The answers of a conversation, each heard to its end."""
    answers = []
    for turn in range(num_turns):
        answers.append(await person.say(f"[echo rate answer {turn}]"))
        await person.wait_until(answers[-1], "completed")
    return answers


async def rated_item(wire: Wire) -> str:
    """The item that was rated last on that wire, once one was: the browser tells of frames after they are sent."""
    await _until(lambda: wire.num_sent(CREATE) != [0], lambda: "nothing was rated")
    item_id: str = wire.last_sent(CREATE)["item_id"]
    return item_id


def stored(server: Server, item_id: str) -> list[Rating]:
    """What is stored of ratings of that answer: a row for each person."""
    with closing(sqlite3.connect(f"file:{server.data / 'flueman.db'}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT rating, reason, comment FROM feedback WHERE item_id = ?", (item_id,))
        return [Rating(*row) for row in rows]


async def wait_until_stored(server: Server, item_id: str, *rating: str | None) -> None:
    """Until the one row of that answer is this rating: the writer takes its time."""
    await _until(lambda: stored(server, item_id) == [Rating(*rating)], lambda: f"stored: {stored(server, item_id)}")


async def _until(is_so: Callable[[], bool], what: Callable[[], str]) -> None:
    deadline = asyncio.get_running_loop().time() + _PATIENCE_S
    while not is_so():
        assert asyncio.get_running_loop().time() < deadline, what()
        await asyncio.sleep(0.05)
