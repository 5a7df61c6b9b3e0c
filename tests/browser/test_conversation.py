"""Talking to the digital human in a real browser, against a really running server."""

import asyncio
import json
import re

import pytest
from playwright.async_api import Browser, WebSocketRoute, expect

from tests.browser.conftest import NUM_TOKENS, PATIENCE_MS, Server, visit
from tests.browser.passing import note, noted
from tests.browser.person import Person

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

RECORD_LENGTHS = """() => {
  window.lengths = [];
  new MutationObserver(() => {
    const length = document.querySelector(".answer .words")?.textContent.length ?? 0;
    if (length !== window.lengths.at(-1)) window.lengths.push(length);
  }).observe(document.querySelector("[role=log]"), { childList: true, characterData: true, subtree: true });
}"""
# When the page asked and when each piece of the answer came, however late that was.
TIME_TOKENS = """window.arrived = [];
window.WebSocket = class extends WebSocket {
  constructor(...address) {
    super(...address);
    this.addEventListener("message", ({ data }) => {
      if (JSON.parse(data).type === "response.output_text.delta") window.arrived.push(performance.now());
    });
  }
  send(data) {
    if (JSON.parse(data).type === "response.create") window.asked = performance.now();
    super.send(data);
  }
}"""
RECORD_MOUTH = """() => {
  window.mouths = new Set();
  window.openMouths = new Set();
  const mouth = document.querySelector(".face .mouth");
  new MutationObserver(() => {
    const shape = mouth.getAttribute("d");
    window.mouths.add(shape);
    if (document.querySelector(".face .tongue").getAttribute("opacity") > 0.2) window.openMouths.add(shape);
  }).observe(mouth, { attributes: true });
}"""


async def test_an_answer_appears_while_it_is_written(browser: Browser, server: Server) -> None:
    async with visit(browser, server.url) as page:
        person = Person(page)
        await person.wait_until_connected()
        await page.evaluate(RECORD_LENGTHS)

        answer = await person.say("Hello")

        await person.wait_until(answer, "completed")
        lengths = await page.evaluate("window.lengths")
        assert lengths == sorted(lengths)
        assert len(lengths) > NUM_TOKENS / 3, "the text came in a few lumps, not as it was written"
        assert len(await person.words(answer)) == lengths[-1]


async def test_each_answer_shows_time_to_first_token_and_tokens_per_second(browser: Browser, server: Server) -> None:
    async with visit(browser, "about:blank") as page:
        await page.add_init_script(TIME_TOKENS)
        await page.goto(server.url)
        person = Person(page)
        await person.wait_until_connected()

        answer = await person.say("[wait 0.4] Hello")

        await person.wait_until(answer, "completed")
        await expect(page.locator("#first-token")).to_have_text(re.compile(r"^\d+ ms$"))
        await expect(page.locator("#speed")).to_have_text(re.compile(r"^[\d.]+ tokens/s$"))
        stats = await answer.locator(".meta").text_content() or ""
        found = re.fullmatch(r"First token (\d+) ms · ([\d.]+) tokens/s · (\d+) tokens", stats)
        assert found is not None, stats
        first_ms, rest_s = await page.evaluate("[arrived[0] - asked, (arrived.at(-1) - arrived[0]) / 1000]")
        assert 400 <= int(found[1]) == pytest.approx(first_ms, abs=100)
        assert float(found[2]) == pytest.approx((NUM_TOKENS - 1) / rest_s, rel=0.1)
        assert int(found[3]) == NUM_TOKENS


async def test_stop_ends_the_answer_and_keeps_what_was_said(browser: Browser, server: Server) -> None:
    async with visit(browser, server.url) as page:
        person = Person(page)
        await person.wait_until_connected()
        answer = await person.say("[tokens 2000] Go on")
        await person.wait_until_speaking(answer)

        await person.stop.click()

        await person.wait_until(answer, "cancelled")
        await expect(answer).to_contain_text("You stopped this answer.")
        said = await person.words(answer)
        assert said
        assert len(said.split()) < 1000
        next_answer = await person.say("And now?")
        await person.wait_until(next_answer, "completed")
        assert await person.words(answer) == said


async def test_a_new_message_interrupts_the_answer(browser: Browser, server: Server) -> None:
    async with visit(browser, server.url) as page:
        person = Person(page)
        await person.wait_until_connected()
        first = await person.say("[tokens 2000] Go on")
        await person.wait_until_speaking(first)

        second = await person.say("Wait, something else")

        await person.wait_until(first, "cancelled")
        await expect(first).to_contain_text("Interrupted by your next message.")
        await person.wait_until(second, "completed")
        assert await person.answers.count() == 2


async def test_a_failed_answer_can_be_asked_for_again(browser: Browser, server: Server) -> None:
    async with visit(browser, server.url) as page:
        person = Person(page)
        await person.wait_until_connected()
        first = await person.say("[fail after 3] Hello")
        await person.wait_until(first, "failed")
        await expect(first).to_contain_text("This answer failed.")

        await first.get_by_role("button", name="Ask again").click()

        await person.wait_until(person.answers.nth(1), "failed")
        await expect(person.log.get_by_role("button", name="Ask again")).to_have_count(1)
        await expect(person.log.locator("article.question")).to_have_count(1)


async def test_markup_from_either_side_stays_text(browser: Browser, server: Server) -> None:
    markup = '<img src=x onerror="window.harm=1"><script>window.harm=1</script><b>bold</b> &amp;'
    async with visit(browser, server.url) as page:
        person = Person(page)
        await person.wait_until_connected()

        answer = await person.say(f"[echo {markup}]")

        await person.wait_until(answer, "completed")
        assert await person.words(answer) == markup
        await expect(person.log.locator("article.question .words")).to_have_text(f"[echo {markup}]")
        await expect(person.log.locator("img, script, b")).to_have_count(0)
        assert await page.evaluate("window.harm") is None


async def test_a_message_over_the_limit_is_refused_before_it_is_sent(browser: Browser, server: Server) -> None:
    async with visit(browser, server.url) as page:
        person = Person(page)
        await person.wait_until_connected()

        await person.box.fill("é" * 40_000)
        await person.box.press("Enter")

        await expect(person.notice).to_contain_text("79 KiB, and the limit is 64 KiB")
        assert len(await person.box.input_value()) == 40_000
        await expect(person.log.locator("article")).to_have_count(0)
        answer = await person.say("Short")
        await person.wait_until(answer, "completed")
        await expect(person.notice).to_be_empty()


async def test_the_face_thinks_then_speaks_then_listens(browser: Browser, server: Server) -> None:
    async with visit(browser, server.url) as page:
        person = Person(page)
        await person.wait_until_connected()
        await page.evaluate(RECORD_MOUTH)
        await note(page, "document.querySelector('#mood').textContent")

        answer = await person.say("[tokens 2000] Hello")
        async with asyncio.timeout(PATIENCE_MS / 1000):
            while await page.evaluate("window.openMouths.size") <= 20:
                await person.wait_until_speaking(answer)
        await person.stop.click()
        await person.wait_until(answer, "cancelled")
        await person.box.fill("So")

        await expect(page.locator("#mood")).to_have_text("Listening")
        asked, stopped = ["Ready", "Listening", "Thinking", "Speaking"], ["Thinking", "Ready", "Listening"]
        assert await noted(page) == asked + stopped


async def test_nothing_moves_when_reduced_motion_is_asked_for(browser: Browser, server: Server) -> None:
    async with visit(browser, server.url, is_still=True) as page:
        person = Person(page)
        await person.wait_until_connected()

        answer = await person.say("[tokens 2000] Go on")
        await person.wait_until_speaking(answer)
        await page.evaluate(RECORD_MOUTH)
        await expect(answer.locator(".words")).to_contain_text(re.compile(r"(\S+\s+){30}"))

        assert await page.evaluate("document.getAnimations().length") == 0
        assert await page.evaluate("window.mouths.size") <= 2


async def test_an_answer_cut_short_says_so(browser: Browser, server: Server) -> None:
    def shorten(socket: WebSocketRoute) -> None:
        upstream = socket.connect_to_server()

        def forward(frame: str | bytes) -> None:
            event = json.loads(frame)
            if event["type"] == "response.create":
                event["response"] |= {"max_output_tokens": 4}
            upstream.send(json.dumps(event))

        socket.on_message(forward)

    async with visit(browser, "about:blank") as page:
        await page.route_web_socket("**/v1/realtime*", shorten)
        await page.goto(server.url)
        person = Person(page)
        await person.wait_until_connected()

        answer = await person.say("Hello")

        await person.wait_until(answer, "incomplete")
        await expect(answer).to_contain_text("Cut short: the answer reached its length limit.")
        await expect(answer.locator(".meta")).to_contain_text("4 tokens")


async def test_an_event_that_the_server_refuses_is_a_polite_notice(browser: Browser, server: Server) -> None:
    def spoil(socket: WebSocketRoute) -> None:
        upstream = socket.connect_to_server()

        def forward(frame: str | bytes) -> None:
            event = json.loads(frame)
            if event["type"] == "session.update":
                event["session"]["output_modalities"] = ["scent"]
            upstream.send(json.dumps(event))

        socket.on_message(forward)

    async with visit(browser, "about:blank") as page:
        await page.route_web_socket("**/v1/realtime*", spoil)
        await page.goto(server.url)
        person = Person(page)

        await expect(person.notice).to_contain_text("output_modalities")

        await page.get_by_role("button", name="Dismiss").click()
        await expect(person.notice).to_be_empty()
        await expect(person.box).to_be_focused()
        answer = await person.say("Hello")
        await person.wait_until(answer, "completed")
