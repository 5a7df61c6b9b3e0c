"""Talks to be disturbed: someone at the page, what passes over its wire, and what the server remembers of it."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from httpx import AsyncClient
from playwright.async_api import Browser, Locator, Page, WebSocket, WebSocketRoute, expect

from tests.browser.conftest import AWAY, PATIENCE_MS, Server, visit
from tests.browser.person import Person
from tests.end_to_end.client import Client, open_client

SLOWLY = "[pace 25] [tokens 60] Go on"
ENDLESSLY = "[tokens 2000] Go on"
KEPT = "JSON.parse(sessionStorage.getItem('flueman.conversation'))"
REALTIME = "**/v1/realtime*"
GAPS = """window.WebSocket = class extends WebSocket {
  constructor(address, protocols) {
    const url = new URL(address);
    if (url.searchParams.has("starting_after")) url.searchParams.set("starting_after", "999999");
    super(url, protocols);
  }
}"""
Event = dict[str, Any]


def hold_back(kind: str, released: asyncio.Event) -> Callable[[Page], Awaitable[None]]:
    """The server's events from the first of that kind on come once they are released."""

    def carry(page_side: WebSocketRoute) -> None:
        server_side = page_side.connect_to_server()
        held: list[str | bytes] = []

        async def back(frame: str | bytes) -> None:
            if json.loads(frame)["type"] == kind or held:
                held.append(frame)
                await released.wait()
                while held:
                    page_side.send(held.pop(0))
            else:
                page_side.send(frame)

        server_side.on_message(back)

    return lambda page: page.route_web_socket(REALTIME, carry)


class Wire:
    """What passes between a page and its server, on all connections the page makes from now on."""

    def __init__(self, page: Page) -> None:
        self.sent: list[Event] = []
        self.received: list[Event] = []
        page.on("websocket", self._listen)

    def _listen(self, socket: WebSocket) -> None:
        socket.on("framesent", lambda frame: self.sent.append(json.loads(frame)))
        socket.on("framereceived", lambda frame: self.received.append(json.loads(frame)))

    def num_sent(self, *kinds: str) -> list[int]:
        """How many events of each type were sent."""
        counts = Counter(event["type"] for event in self.sent)
        return [counts[kind] for kind in kinds]

    def num_received(self, *kinds: str) -> list[int]:
        """How many events of each type were received."""
        counts = Counter(event["type"] for event in self.received)
        return [counts[kind] for kind in kinds]

    async def until_received(self, kind: str, count: int) -> None:
        """Wait until so many events of that type were received."""
        async with asyncio.timeout(PATIENCE_MS / 1000):
            while self.num_received(kind) < [count]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def last_sent(self, kind: str) -> Event:
        """The last event of that type that was sent."""
        return [event for event in self.sent if event["type"] == kind][-1]


@asynccontextmanager
async def talk(
    browser: Browser, url: str, *prepare: Callable[[Page], Awaitable[None]]
) -> AsyncIterator[tuple[Person, Wire]]:
    """Someone at the page, connected, and all that passes between it and its server."""
    async with visit(browser, "about:blank", ignoring=AWAY) as page:
        wire, person = Wire(page), Person(page)
        for step in prepare:
            await step(page)
        await page.goto(url)
        await person.wait_until_connected()
        yield person, wire


async def wait_for_words(answer: Locator, num_words: int) -> None:
    """Until so many are shown."""
    await expect(answer.locator(".words")).to_have_text(re.compile(rf"(\S+\s+){{{num_words}}}"))


async def answer_undisturbed(browser: Browser, url: str, question: str = SLOWLY) -> str:
    """What is answered to that when nothing happens."""
    async with talk(browser, url) as (person, _):
        answer = await person.say(question)
        await person.wait_until(answer, "completed")
        return await person.words(answer)


async def questions(person: Person) -> list[str]:
    """The person's messages in the transcript, in order."""
    return await person.log.locator("article.question .words").all_text_contents()


async def make_gaps(page: Page) -> None:
    """From now on the page asks for what comes after an event that never was."""
    await page.add_init_script(GAPS)


@asynccontextmanager
async def another_client(page: Page, server: Server) -> AsyncIterator[Client]:
    """Another client of the page's user, in the page's conversation."""
    async with AsyncClient() as http:
        token = (await http.post(f"{server.url}dev/token")).json()["value"]
    async with open_client(server.port, token, resuming=(await page.evaluate(KEPT), 1)) as client:
        yield client


async def remembered(page: Page, server: Server, item_id: str) -> str:
    """The item's text as the server has it; whoever asks so takes the conversation, and the page takes it back."""
    async with another_client(page, server) as client:
        await client.send("conversation.item.retrieve", item_id=item_id)
        item = (await client.until("conversation.item.retrieved"))["item"]
        client.cut()
    await page.get_by_role("button", name="Take it back").click()
    await Person(page).wait_until_connected()
    text: str = item["content"][0]["text"]
    return text
