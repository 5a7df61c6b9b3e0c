"""A recording with personal data covered: every event has its number, time and place, and every byte that says nothing personal."""

import asyncio
import itertools
import random
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence

import msgspec
import pytest

import persistence.masked_events
from persistence.masked_events import masked_events
from persistence.masked_json import mask_json
from persistence.masking import BULLET, mask
from persistence.part import JournalEvent
from persistence.recording import Edge, Hole, Recorded
from sessions.utf16 import num_units

PHONE = "010-1234-5678"
MAIL = "kim.minsu@example.com"
SAID = f"물론이죠! 번호는 {PHONE}이고 메일은 {MAIL}입니다. Card: 4111 1111 1111 1111, in 2024 for 4,500원."


def event(kind: str, **fields: object) -> bytes:
    """An event, encoded as the journal has it."""
    return msgspec.json.encode({"type": kind, "event_id": "event_1", **fields})


def message(item_id: str, text: str, role: str = "assistant") -> dict[str, object]:
    content = [{"type": "output_text" if role == "assistant" else "input_text", "text": text}]
    return {"type": "message", "id": item_id, "role": role, "content": content, "status": "completed"}


def spoken(pieces: Sequence[str], item_id: str = "item_1", response_id: str = "resp_1") -> list[bytes]:
    """All events of an answer in these pieces."""
    place = {"response_id": response_id, "item_id": item_id, "output_index": 0, "content_index": 0}
    text = "".join(pieces)
    return [
        event("response.output_item.added", response_id=response_id, output_index=0, item=message(item_id, "")),
        event("response.content_part.added", **place, part={"type": "text", "text": ""}),
        *(event("response.output_text.delta", **place, delta=piece) for piece in pieces),
        event("response.output_text.done", **place, text=text),
        event("response.content_part.done", **place, part={"type": "text", "text": text}),
        event("response.output_item.done", response_id=response_id, output_index=0, item=message(item_id, text)),
        event("response.done", response={"id": response_id, "output": [message(item_id, text)]}),
    ]


def numbered(events: Iterable[bytes], first: int = 1) -> list[Recorded | Edge]:
    return [JournalEvent(number, 1000 + 10 * number, found) for number, found in enumerate(events, first)]


async def stream(found: Iterable[Recorded | Edge]) -> AsyncGenerator[Recorded | Edge, None]:
    for each in found:
        yield each


async def seen(found: Iterable[Recorded | Edge]) -> list[Recorded | Edge]:
    """What a viewer sees of it."""
    return [each async for each in masked_events(stream(found))]


def deltas(found: Iterable[Recorded | Edge]) -> str:
    events = [msgspec.json.decode(each.event) for each in found if isinstance(each, JournalEvent)]
    return "".join(each["delta"] for each in events if "delta" in each)


def cut_at(text: str, cuts: Sequence[int]) -> list[str]:
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


class TestAnswers:
    @pytest.mark.parametrize("seed", range(8))
    async def test_whatever_the_deltas_are_they_say_what_the_masked_text_says(self, seed: int) -> None:
        chance = random.Random(seed)
        cuts = sorted(chance.sample(range(1, len(SAID)), chance.randrange(1, len(SAID) - 1)))
        told = numbered(spoken(cut_at(SAID, cuts)))

        found = await seen(told)

        assert deltas(found) == mask(SAID)
        for before, after in zip(told, found, strict=True):
            assert isinstance(before, JournalEvent)
            assert isinstance(after, JournalEvent)
            assert (after.sequence, after.at_ms) == (before.sequence, before.at_ms)
            one, other = msgspec.json.decode(before.event), msgspec.json.decode(after.event)
            assert one.keys() == other.keys()
            assert num_units(str(one.get("delta"))) == num_units(str(other.get("delta")))
        shown = b"".join(each.event for each in found if isinstance(each, JournalEvent))
        assert not any(datum.encode() in shown for datum in (PHONE, MAIL, "4111", "1234", "minsu"))

    async def test_what_says_nothing_personal_is_the_same_to_the_byte(self) -> None:
        odd = b'{"type" : "error","event_id":"e","error":{"message":"caf\\u00e9 \\/ 1e2","n":1.0, "more": [1,2 , 3]}}'
        told = numbered([*spoken(["In ", "20", "24 it ", "was 4,5", "00원. "]), odd])

        assert await seen(told) == told

    async def test_answers_that_run_at_once_are_masked_each_by_itself(self) -> None:
        first, second = (
            spoken([*PHONE, " ok"], "item_1", "resp_1"),
            spoken([*"call 4111 1111 1111 1111."], "item_2", "resp_2"),
        )
        woven = [each for pair in zip(first, second, strict=False) for each in pair] + second[len(first) :]
        told = numbered(woven)

        found = await seen(told)

        assert [each.sequence for each in found if isinstance(each, JournalEvent)] == [*range(1, len(told) + 1)]
        assert deltas([each for each in found if isinstance(each, JournalEvent) and b"item_2" in each.event]) == (
            f"call {BULLET * 19}."
        )
        assert not any(char.isdigit() for char in deltas(found))

    async def test_arguments_of_a_tool_call_are_masked_as_they_come(self) -> None:
        arguments = '{"to":"010-1234-5678","text":"hi\\nkim.minsu@example.com","n":3}'
        place = {"response_id": "resp_1", "item_id": "item_1", "output_index": 0, "call_id": "call_1"}
        call = {"type": "function_call", "id": "item_1", "call_id": "call_1", "name": "sms", "arguments": ""}
        told = numbered(
            [
                event("response.output_item.added", response_id="resp_1", output_index=0, item=call),
                *(event("response.function_call_arguments.delta", **place, delta=char) for char in arguments),
                event("response.function_call_arguments.done", **place, name="sms", arguments=arguments),
            ]
        )

        found = await seen(told)

        last = found[-1]
        assert isinstance(last, JournalEvent)
        shown = msgspec.json.decode(last.event)["arguments"]
        assert deltas(found) == shown
        assert msgspec.json.decode(shown) == {"to": BULLET * 13, "text": "hi\n" + BULLET * 21, "n": 3}

    @pytest.mark.parametrize("text", ["mail j.smith@gma", "call 010-1234-56"])
    async def test_an_answer_that_was_stopped_within_it_shows_nothing_of_it(self, text: str) -> None:
        found = await seen(numbered(spoken([*text])))

        covered = text[:5] + BULLET * (len(text) - 5)
        assert deltas(found) == covered
        done = found[2 + len(text)]
        assert isinstance(done, JournalEvent)
        assert msgspec.json.decode(done.event)["text"] == covered

    async def test_an_item_that_is_called_by_an_address_is_the_same_one_in_each_of_its_events(self) -> None:
        told = numbered(spoken(["Good ", "morning."], MAIL))

        found = [each for each in await seen(told) if isinstance(each, JournalEvent)]

        assert len(found) == len(told)
        assert all(each.event.count((BULLET * len(MAIL)).encode()) == 1 for each in found)
        assert deltas(found) == "Good morning."


class TestTheLoop:
    """P7: what is live goes on while a recording is masked."""

    async def test_it_turns_whenever_it_was_held_for_long(self) -> None:
        told = numbered(spoken(["word "] * 100))
        seconds = itertools.count()

        assert await num_turns(told, lambda: next(seconds)) >= len(told)
        assert await num_turns(told, lambda: 0.0) < 5

    async def test_it_turns_while_what_was_held_back_is_given_out(self) -> None:
        told = [
            *numbered([*spoken([*"010-12"], "item_1")[:8], *spoken(["word "] * 100, "item_2")]),
            Hole(999, 999, "lost"),
        ]
        seconds = itertools.count()

        assert await num_turns(told, lambda: next(seconds)) >= 2 * len(told) - 20

    async def test_what_is_long_is_masked_in_a_thread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        masked_here: list[tuple[bool, bool]] = []

        def noted(document: bytes, *, delta: str | None = None) -> bytes:
            masked_here.append((len(document) > 10_000, threading.current_thread() is threading.main_thread()))
            return mask_json(document, delta=delta)

        monkeypatch.setattr(persistence.masked_events, "mask_json", noted)
        told = numbered(spoken([f"{PHONE}, {'word ' * 3000}", "word "]))

        found = await seen(told)

        assert deltas(found) == f"{BULLET * 13}, {'word ' * 3001}"
        assert sorted(set(masked_here)) == [(False, True), (True, False)]


async def num_turns(told: Iterable[Recorded | Edge], now_s: Callable[[], float]) -> int:
    """How often the loop turns while it is masked."""
    num, is_done = 0, False

    async def watch() -> None:
        nonlocal num
        while not is_done:
            num += 1
            await asyncio.sleep(0)

    async def read() -> None:
        nonlocal is_done
        async for _ in masked_events(stream(told), now_s=now_s):
            pass
        is_done = True

    await asyncio.gather(watch(), read())
    return num


class TestBrokenStreams:
    @pytest.mark.parametrize("first", range(3, 3 + len(PHONE) + 6))
    async def test_who_begins_within_a_number_sees_no_piece_of_it(self, first: int) -> None:
        told = numbered(spoken([*f"tel {PHONE}, and then more words."]))

        found = await seen(told[first:])

        shown = deltas(found)
        assert not any(char.isdigit() for char in shown)
        assert shown.endswith("more words.")

    @pytest.mark.parametrize("first", range(3, 3 + len(PHONE) + 6))
    async def test_a_hole_within_a_number_shows_no_piece_of_it(self, first: int) -> None:
        told = numbered(spoken([*f"tel {PHONE}, and then more words."]))
        holed = [*told[:first], Hole(first + 1, first + 1, "lost"), *told[first + 1 :]]

        found = await seen(holed)

        assert [type(each) for each in found] == [type(each) for each in holed]
        assert not any(char.isdigit() for char in deltas(found))

    async def test_who_follows_gets_what_is_settled_at_once_and_the_rest_once_it_is(self) -> None:
        told = numbered(spoken([*f"tel {PHONE}"]))
        until = 2 + len("tel 010-12")

        found = await seen([*told[:until], Edge(), *told[until:]])

        edge = found.index(Edge())
        assert deltas(found[:edge]) == "tel "
        assert deltas(found) == f"tel {BULLET * 13}"

    async def test_a_recording_that_ends_within_a_number_ends_without_it(self) -> None:
        told = numbered(spoken([*f"tel {PHONE}"]))

        found = await seen(told[: 2 + len("tel 010-12")])

        assert len(found) == 2 + len("tel 010-12")
        assert not any(char.isdigit() for char in deltas(found))

    async def test_no_more_is_held_than_a_bound_while_a_text_stands_still(self) -> None:
        numbers = numbered(spoken([*"010-12"], "item_1", "resp_1"))[: 2 + 6]
        others = numbered(spoken(["word " * 1000] * 400, "item_2", "resp_2"), 9)

        most, num_seen = 0, 0

        async def counted() -> AsyncGenerator[Recorded | Edge, None]:
            nonlocal most
            held = 0
            for number, each in enumerate([*numbers, *others]):
                held = number - num_seen
                most = max(most, held)
                yield each

        async for _ in masked_events(counted()):
            num_seen += 1

        assert num_seen == len(numbers) + len(others)
        assert most < 250


class TestDocuments:
    def test_only_the_strings_that_hold_something_are_changed(self) -> None:
        document = (
            b'{ "id":"0101234567890", "text" : "a \\"q\\" 010-1234-5678", "\\u0061":[ "x", {"n":1.50,"m":"a@b.example"} ],'
            b'"item_id":"010-1234-5678" }'
        )

        changed = mask_json(document)

        assert changed == (
            document.replace(b'\\"q\\" 010-1234-5678', f'\\"q\\" {BULLET * 13}'.encode()).replace(
                b"a@b.example", (BULLET * 11).encode()
            )
        )

    def test_a_document_in_a_string_is_masked_too(self) -> None:
        inner = msgspec.json.encode({"mail": MAIL, "n": "x" * 9}).decode()

        changed = msgspec.json.decode(mask_json(msgspec.json.encode({"arguments": inner})))

        assert msgspec.json.decode(changed["arguments"]) == {"mail": BULLET * 21, "n": "x" * 9}

    @pytest.mark.parametrize(
        "document",
        [
            '{"metadata":{"id":"01012345678"}}',
            '{"metadata":[{"a":{}},{"b":{"role":"010-1234-5678"}}]}',
            '{"prompt":{"id":"p","variables":{"status":"010-1234-5678"}}}',
            '{"metadata":{"lee@example.com":"x"}}',
            '{"id":"kim@example.com"}',
            '{"id":"kim%40example.com"}',
            '{"id":"kim\\u0040example.com"}',
            '{"call_id":"call 010-1234-5678"}',
            '[{"type":"a"},"010-1234-5678"]',
            '{"id":[{"a":1},"010-1234-5678"]}',
        ],
    )
    def test_a_name_of_what_ties_events_is_no_shelter(self, document: str) -> None:
        masked = mask_json(document.encode()).decode()

        assert BULLET * 11 in masked
        assert "example" not in masked
        assert "1234" not in masked
        assert list(msgspec.json.decode(masked)) != []

    @pytest.mark.parametrize(
        "document",
        [
            b'{"metadata":{"a":[{}]},"id":"010-1234-5678"}',
            b'{"metadata":null,"id":"010-1234-5678"}',
            b'{"prompt":[],"item":{"id":"010-1234-5678"}}',
            b'{"item_id":["010-1234-5678","010-1234-5679"]}',
        ],
    )
    def test_what_ties_events_together_stays(self, document: bytes) -> None:
        assert mask_json(document) == document

    def test_what_is_no_json_stays_as_it_is(self) -> None:
        assert mask_json(b'\xff"abc') == b'\xff"abc'
