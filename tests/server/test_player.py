"""A replay on one connection, on a clock that jumps: what is sent when, and what a viewer may do meanwhile. P7, P8"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from persistence.errors import ArchiveUnavailable
from persistence.part import JournalEvent
from persistence.recording import Edge, Extent, Hole, Recorded, Recording
from server.player import Asked, Player
from server.view import Stream
from sessions.server_events import with_sequence_number
from sessions.store import SessionMeta
from sessions.wire_errors import BadEvent
from tests.sessions.builders import Json
from tests.virtual_time import run

FIRST_MS = 1_795_391_998_123
SESSION_ID = "sess_1"
POLL_S = 0.005
META = SessionMeta(SESSION_ID, user_id="anna", client_id="kiosk", model="demo", created_ms=FIRST_MS)


def make_event(sequence: int, after_ms: int, kind: str = "conversation.item.added", **fields: object) -> JournalEvent:
    event = msgspec.json.encode({"type": kind, "event_id": f"event_{sequence}", **fields})
    return JournalEvent(sequence, FIRST_MS + after_ms, event)


def make_answer(first: int, after_ms: int, num_deltas: int = 5, step_ms: int = 40) -> list[JournalEvent]:
    """A part of an answer: its deltas, and its end."""
    item = {"response_id": f"resp_{first}", "item_id": f"item_{first}", "output_index": 0, "content_index": 0}
    deltas = [
        make_event(first + n, after_ms + n * step_ms, "response.output_text.delta", delta=f"word{n} ", **item)
        for n in range(num_deltas)
    ]
    end_ms = after_ms + num_deltas * step_ms
    return [*deltas, make_event(first + num_deltas, end_ms, "response.output_text.done", text="words", **item)]


# A greeting, a silence of ten seconds, an answer, a minute, another answer.
DIALOGUE = [
    make_event(1, 0),
    make_event(2, 130),
    *make_answer(3, 10_130),
    *make_answer(9, 70_000),
    make_event(15, 70_500),
]


def make_extent(found: Sequence[Recorded], *, is_live: bool = False) -> Extent:
    events = [event for event in found if isinstance(event, JournalEvent)]
    holes = tuple(hole for hole in found if isinstance(hole, Hole))
    return Extent(
        meta=META,
        first_sequence=1,
        last_sequence=max([event.sequence for event in events] + [hole.last for hole in holes]),
        first_ms=FIRST_MS,
        last_ms=max(event.at_ms for event in events),
        num_events=len(events),
        is_live=is_live,
        holes=(),
    )


class Tape:
    """A recording in memory. What is `add`ed while it is live comes after an edge, of which there is one each time it is looked for."""

    def __init__(self, found: Sequence[Recorded], *, is_live: bool = False) -> None:
        self.found = list(found)
        self.is_live = is_live
        self.num_given = 0
        self.error: Exception | None = None

    def add(self, *found: Recorded, ends: bool = False) -> None:
        self.found += found
        self.is_live = self.is_live and not ends

    async def events(self, session_id: str, after: int = 0) -> AsyncGenerator[Recorded, None]:
        for entry in tuple(self.found):
            if (entry.sequence if isinstance(entry, JournalEvent) else entry.last) > after:
                if self.error is not None:
                    raise self.error
                self.num_given += 1
                yield entry
                await asyncio.sleep(0)

    async def follow(
        self, session_id: str, after: int = 0, *, wait: Callable[[float], Awaitable[None]]
    ) -> AsyncGenerator[Recorded | Edge, None]:
        while True:
            is_live = self.is_live
            async for entry in self.events(session_id, after):
                after = entry.sequence if isinstance(entry, JournalEvent) else entry.last
                yield entry
            if not is_live:
                return
            yield Edge()
            await wait(POLL_S)


class Viewer:
    """A connection that notes what it is sent and when, and what its user does."""

    def __init__(self) -> None:
        self.sent: list[tuple[float, bytes]] = []
        self.events: list[Json] = []
        # Of the recorded events since the last restart.
        self.numbers: list[int] = []
        self.is_done = False
        self.closed: tuple[int, str] | None = None
        self.is_congested = False
        self.player: Player
        self._news = asyncio.Event()

    def send_texts(self, payloads: list[bytes]) -> None:
        assert self.closed is None
        self.sent += [(asyncio.get_running_loop().time(), payload) for payload in payloads]
        for payload in payloads:
            self._note(msgspec.json.decode(payload))
        self._news.set()

    def close(self, code: int, reason: str) -> None:
        self.closed = self.closed or (code, reason)
        self._news.set()

    def update(self, **fields: object) -> None:
        self.send("avatar.replay.update", **fields)

    def send(self, kind: str, **fields: object) -> None:
        self.player.receive(msgspec.json.encode({"type": kind, **fields}).decode())

    def _note(self, event: Json) -> None:
        self.events.append(event)
        if event["type"] == "avatar.replay.updated" and event["replay"]["restarted"]:
            self.numbers.clear()
            self.is_done = False
        if "sequence_number" in event:
            self.numbers.append(event["sequence_number"])
        self.is_done = self.is_done or event["type"] == "avatar.replay.done"

    def of(self, kind: str) -> list[Json]:
        return [event for event in self.events if event["type"] == kind]

    def shown_at(self) -> dict[int, float]:
        """When each recorded event was last shown."""
        return {
            event["sequence_number"]: at_s
            for (at_s, _), event in zip(self.sent, self.events, strict=True)
            if "sequence_number" in event
        }

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(100_000):
            while not holds():
                self._news.clear()
                await self._news.wait()

    async def until_done(self, count: int = 1) -> Json:
        await self.until(lambda: len(self.of("avatar.replay.done")) >= count)
        return self.of("avatar.replay.done")[-1]


@asynccontextmanager
async def playing(
    tape: Tape,
    view: Callable[[Stream], Stream] = lambda stream: stream,
    *,
    viewer: Viewer | None = None,
    **asked: Any,
) -> AsyncIterator[Viewer]:
    viewer, loop = viewer or Viewer(), asyncio.get_running_loop()
    viewer.player = Player(
        cast("Recording", tape),
        make_extent(tape.found, is_live=tape.is_live),
        viewer,
        Asked(session_id=SESSION_ID, **asked),
        view=view,
        # The session's first event was a minute ago when the test begins.
        now_ms=lambda: FIRST_MS + 60_000 + int(loop.time() * 1000),
        now_s=loop.time,
    )
    await viewer.player.locate()
    viewer.player.begin()
    task = asyncio.create_task(viewer.player.run())
    try:
        yield viewer
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled() or viewer.closed


@pytest.mark.parametrize("speed", [0.1, 1.0, 8.0, 100.0])
def test_events_come_unchanged_at_their_spacing_divided_by_the_speed(speed: float) -> None:
    """P8"""

    async def scene() -> None:
        async with playing(Tape(DIALOGUE), speed=speed) as viewer:
            await viewer.until_done()

        recorded = [payload for _, payload in viewer.sent[1:-1]]
        assert recorded == [with_sequence_number(event.event, event.sequence) for event in DIALOGUE]
        shown_at = viewer.shown_at()
        for event in DIALOGUE:
            expected_s = shown_at[1] + (event.at_ms - FIRST_MS) / 1000 / speed
            assert shown_at[event.sequence] == pytest.approx(expected_s, abs=0.002)

    run(scene())


def test_a_replay_begins_by_saying_what_there_is() -> None:
    async def scene() -> None:
        async with playing(Tape([*DIALOGUE, Hole(16, 18, "lost")]), speed=2, max_silence_ms=500) as viewer:
            done = await viewer.until_done()

        assert viewer.events[0]["replay"] == {
            "object": "avatar.replay",
            "session_id": SESSION_ID,
            "speed": 2,
            "paused": False,
            "position": 0,
            "duration": 70_500,
            "max_silence_ms": 500,
            "first_sequence_number": 1,
            "last_sequence_number": 18,
            "is_live": False,
            "restarted": False,
            "holes": [],
        }
        assert done["position"] == 70_500

    run(scene())


def test_silences_are_cut_and_everything_else_keeps_its_pace() -> None:
    async def scene() -> None:
        async with playing(Tape(DIALOGUE), max_silence_ms=1000) as viewer:
            await viewer.until_done()

        shown_at = viewer.shown_at()
        assert shown_at[3] - shown_at[2] == pytest.approx(1.0, abs=0.002)
        assert shown_at[4] - shown_at[3] == pytest.approx(0.04, abs=0.002)
        assert shown_at[15] - shown_at[1] == pytest.approx(0.13 + 1 + 0.2 + 1 + 0.5, abs=0.005)

    run(scene())


def test_a_pause_stops_and_a_speed_changes_in_the_middle_of_a_silence() -> None:
    async def scene() -> None:
        async with playing(Tape(DIALOGUE)) as viewer:
            await asyncio.sleep(1.13)
            viewer.update(paused=True)
            await asyncio.sleep(100)
            assert viewer.numbers == [1, 2]
            viewer.update(event_id="mine")
            viewer.update(paused=False, speed=3)
            await viewer.until_done()

        shown_at = viewer.shown_at()
        assert shown_at[3] == pytest.approx(101.13 + 3, abs=0.01)
        states = [event["replay"] for event in viewer.of("avatar.replay.updated")]
        assert [state["position"] for state in states] == [0, 1130, 1130, 1130]
        assert [state["paused"] for state in states] == [False, True, True, False]
        assert not any(state["restarted"] for state in states)

    run(scene())


def test_after_a_seek_all_up_to_there_comes_at_once_without_the_deltas_of_ended_parts() -> None:
    async def scene() -> None:
        async with playing(Tape(DIALOGUE)) as viewer:
            await asyncio.sleep(0.5)
            viewer.update(position=70_090)
            await asyncio.sleep(0)
            await viewer.until(lambda: 11 in viewer.numbers)
            at_once = list(viewer.numbers)
            now_s = asyncio.get_running_loop().time()
            await viewer.until_done()

        assert at_once == [1, 2, 8, 9, 10, 11]
        assert viewer.numbers == [1, 2, 8, 9, 10, 11, 12, 13, 14, 15]
        (restart,) = [event for event in viewer.of("avatar.replay.updated") if event["replay"]["restarted"]]
        assert restart["replay"]["position"] == 70_090
        assert viewer.shown_at()[12] - now_s == pytest.approx(0.03, abs=0.011)

    run(scene())


def test_a_replay_may_begin_at_a_position_or_after_an_event() -> None:
    async def scene() -> None:
        async with playing(Tape(DIALOGUE), position=10_250) as at_position:
            await at_position.until(lambda: 6 in at_position.numbers)
        async with playing(Tape(DIALOGUE), starting_after=8, paused=True) as after_event:
            await asyncio.sleep(100)
            after_event.update(paused=False)
            await after_event.until_done()

        assert at_position.events[0]["replay"]["restarted"]
        assert at_position.numbers[:6] == [1, 2, 3, 4, 5, 6]
        assert after_event.events[0]["replay"]["position"] == 70_000
        assert not after_event.events[0]["replay"]["restarted"]
        assert after_event.numbers == list(range(9, 16))
        assert after_event.shown_at()[9] == pytest.approx(100, abs=0.01)

    run(scene())


@pytest.mark.parametrize("asked", [{"position": 70_501}, {"starting_after": 16}])
def test_a_beginning_that_the_session_does_not_have_is_refused(asked: dict[str, int]) -> None:
    async def scene() -> None:
        with pytest.raises(BadEvent) as refusal:
            async with playing(Tape(DIALOGUE), **cast("Any", asked)):
                pass
        assert (refusal.value.code, refusal.value.param) == ("integer_above_max_value", next(iter(asked)))

    run(scene())


def test_a_seek_past_the_end_is_refused_and_the_replay_goes_on() -> None:
    async def scene() -> None:
        async with playing(Tape(DIALOGUE), speed=100) as viewer:
            viewer.update(position=70_501, event_id="mine")
            await viewer.until_done()
            viewer.update(position=70_500)
            await viewer.until_done(2)

        (error,) = viewer.of("error")
        assert error["error"]["code"] == "integer_above_max_value"
        assert (error["error"]["param"], error["error"]["event_id"]) == ("position", "mine")
        assert viewer.numbers == [1, 2, 8, 14, 15]

    run(scene())


def test_a_seek_while_a_catch_up_runs_takes_its_place() -> None:
    """Events of the former catch-up are never shown after the answer to the later seek."""

    async def scene() -> None:
        events = [make_event(n, n * 10) for n in range(1, 2001)]
        async with playing(Tape(events), paused=True) as viewer:
            viewer.update(position=20_000)
            await viewer.until(lambda: len(viewer.numbers) > 20)
            assert len(viewer.numbers) < 2000
            viewer.update(position=55)
            await viewer.until(lambda: viewer.numbers == [1, 2, 3, 4, 5])
            await asyncio.sleep(100)

        assert viewer.numbers == [1, 2, 3, 4, 5]
        assert viewer.of("avatar.replay.done") == []

    run(scene())


def test_a_hole_is_told_of_where_it_is_and_what_follows_is_shown() -> None:
    async def scene() -> None:
        tape = Tape([*DIALOGUE[:4], Hole(5, 8, "damaged"), *DIALOGUE[8:]])
        async with playing(tape, speed=10) as viewer:
            await viewer.until_done()
            viewer.update(position=70_500)
            await viewer.until_done(2)

        kinds = [event["type"] for event in viewer.events]
        gaps = viewer.of("avatar.replay.gap")
        assert kinds.index("avatar.replay.gap") == 5
        assert [(gap["first_sequence_number"], gap["last_sequence_number"], gap["reason"]) for gap in gaps] == [
            (5, 8, "damaged")
        ] * 2
        assert viewer.numbers == [1, 2, 3, 4, 14, 15]
        assert viewer.of("avatar.replay.updated")[-1]["replay"]["holes"] == [
            {"first_sequence_number": 5, "last_sequence_number": 8, "reason": "damaged"}
        ]

    run(scene())


def test_a_live_session_is_followed_as_it_happens_until_it_ends() -> None:
    async def scene() -> None:
        tape = Tape(DIALOGUE[:2], is_live=True)
        async with playing(tape, position=60_000) as viewer:
            await viewer.until(lambda: viewer.numbers == [1, 2])
            assert viewer.events[0]["replay"]["is_live"]
            await asyncio.sleep(30)
            # It is 90 s after the session's first event.
            tape.add(make_event(3, 90_000), make_event(4, 90_100))
            now_s = asyncio.get_running_loop().time()
            await viewer.until(lambda: viewer.numbers == [1, 2, 3, 4])
            assert viewer.of("avatar.replay.done") == []
            tape.add(make_event(5, 90_300), ends=True)
            done = await viewer.until_done()
            viewer.update()

        assert viewer.shown_at()[3] == pytest.approx(now_s, abs=0.01)
        assert viewer.shown_at()[4] == pytest.approx(now_s + 0.1, abs=0.01)
        assert done["position"] == 90_300
        assert not viewer.of("avatar.replay.updated")[-1]["replay"]["is_live"]
        assert viewer.of("avatar.replay.updated")[-1]["replay"]["last_sequence_number"] == 5

    run(scene())


def test_who_has_seen_all_of_a_live_session_waits_for_nothing_but_the_next_event() -> None:
    async def scene() -> None:
        tape = Tape(DIALOGUE[:2], is_live=True)
        async with playing(tape) as viewer:
            await viewer.until(lambda: viewer.numbers == [1, 2])
            await asyncio.sleep(29.87)
            tape.add(make_event(3, 90_000))
            now_s = asyncio.get_running_loop().time()
            await viewer.until(lambda: viewer.numbers == [1, 2, 3])

        assert viewer.shown_at()[3] == pytest.approx(now_s, abs=0.01)

    run(scene())


def test_a_seek_in_a_live_session_shows_what_was_there_at_once_though_nobody_speaks() -> None:
    async def scene() -> None:
        tape = Tape(DIALOGUE[:8], is_live=True)
        async with playing(tape, position=60_000, paused=True) as viewer:
            await viewer.until(lambda: viewer.numbers == [1, 2, 8])
            await asyncio.sleep(10)
            for position, numbers in ((10_130, [1, 2, 3]), (130, [1, 2]), (0, [1])):
                viewer.update(position=position)
                asked_s = asyncio.get_running_loop().time()
                await viewer.until(lambda: viewer.numbers == numbers)  # noqa: B023
                assert asyncio.get_running_loop().time() == asked_s

    run(scene())


def test_at_the_edge_of_a_live_session_its_position_is_what_happens_now_unless_it_is_paused() -> None:
    async def scene() -> None:
        async with playing(Tape(DIALOGUE[:2], is_live=True), position=130, speed=4) as viewer:
            await viewer.until(lambda: viewer.numbers == [1, 2])
            for after_s, fields in ((10, {}), (10, {"paused": True}), (10, {}), (10, {"paused": False}), (10, {})):
                await asyncio.sleep(after_s)
                viewer.update(**cast("Any", fields))
            await viewer.until(lambda: len(viewer.of("avatar.replay.updated")) == 6)

        states = [event["replay"] for event in viewer.of("avatar.replay.updated")]
        expected = [130, 70_000, 80_000, 80_000, 100_000, 110_000]
        assert [state["position"] for state in states] == pytest.approx(expected, abs=1000 * POLL_S + 1)
        assert [state["duration"] for state in states[1:]] == [state["position"] for state in states[1:]]

    run(scene())


def test_a_catch_up_of_a_live_session_shows_the_deltas_of_the_open_answer() -> None:
    async def scene() -> None:
        tape = Tape(DIALOGUE[:5], is_live=True)
        async with playing(tape, position=50_000) as viewer:
            await viewer.until(lambda: viewer.numbers == [1, 2, 3, 4, 5])

    run(scene())


def test_a_viewer_that_does_not_read_is_sent_no_more_and_costs_no_memory() -> None:
    """P7: and goes on where it was, at the spacing of what follows."""

    async def scene() -> None:
        tape = Tape([make_event(n, n, text="x" * 1000) for n in range(1, 2001)])
        async with playing(tape, position=2000) as viewer:
            viewer.is_congested = True
            await asyncio.sleep(100)
            assert tape.num_given < 5
            viewer.is_congested = False
            viewer.player.wake()
            await viewer.until_done()

        assert viewer.numbers == list(range(1, 2001))

    run(scene())


def test_what_was_held_back_of_a_long_answer_is_shown_as_fast_as_it_is_read() -> None:
    """P7: it is two megabytes, which at once would be more than may be unsent."""

    class SlowViewer(Viewer):
        """Reads only when it is told to. `most` is how many bytes waited for it at once."""

        num_unread = most = 0

        def send_texts(self, payloads: list[bytes]) -> None:
            super().send_texts(payloads)
            self.num_unread += sum(map(len, payloads))
            self.most = max(self.most, self.num_unread)
            self.is_congested = True

        def read(self) -> None:
            self.num_unread, self.is_congested = 0, False
            self.player.wake()

    async def scene() -> None:
        viewer = SlowViewer()
        deltas = [make_event(n, n, kind="response.output_text.delta", text="x" * 1000) for n in range(1, 1801)]
        async with playing(Tape(deltas), viewer=viewer, position=1800):
            while not viewer.is_done:
                await asyncio.sleep(1)
                viewer.read()

        assert viewer.numbers == list(range(1, 1801))
        assert viewer.most < 200_000

    run(scene())


def test_whatever_else_a_viewer_sends_is_refused_and_the_replay_goes_on() -> None:
    async def scene() -> None:
        async with playing(Tape(DIALOGUE), speed=100) as viewer:
            viewer.send("response.create", event_id="mine")
            viewer.send("avatar.feedback.create", item_id="item_1", feedback={"rating": "up"})
            viewer.update(speed=0)
            viewer.player.receive("{")
            await viewer.until_done()

        codes = [event["error"]["code"] for event in viewer.of("error")]
        assert codes == ["replay_read_only", "replay_read_only", "invalid_value", "invalid_json"]
        assert viewer.of("error")[0]["error"]["event_id"] == "mine"
        assert viewer.numbers == [event.sequence for event in DIALOGUE]

    run(scene())


def test_a_storm_of_updates_is_bounded_and_passes() -> None:
    async def scene() -> None:
        async with playing(Tape(DIALOGUE), paused=True) as viewer:
            for position in range(200):
                viewer.update(position=position)
            await asyncio.sleep(1.01)
            viewer.update(position=200)
            await viewer.until(lambda: viewer.numbers == [1, 2])

        errors = [event["error"] for event in viewer.of("error")]
        assert [error["code"] for error in errors] == ["rate_limit_exceeded"] * 180
        assert errors[0]["type"] == "rate_limit_error"
        positions = [event["replay"]["position"] for event in viewer.of("avatar.replay.updated")]
        assert positions == [0, *range(20), 200]

    run(scene())


def test_what_cannot_be_read_now_is_said_and_closes_the_connection_for_another_try() -> None:
    """P9"""

    async def scene() -> None:
        tape = Tape(DIALOGUE)
        async with playing(tape, speed=100) as viewer:
            await viewer.until(lambda: 3 in viewer.numbers)
            tape.error = ArchiveUnavailable("S3 answered 503 secret-bucket")
            await viewer.until(lambda: viewer.closed is not None)

        assert viewer.closed is not None
        assert viewer.closed[0] == 1013
        assert viewer.of("error")[0]["error"]["type"] == "server_error"
        assert "secret-bucket" not in str(viewer.events)

    run(scene())


def test_a_bug_closes_this_connection_and_says_nothing() -> None:
    async def scene() -> None:
        tape = Tape(DIALOGUE)
        tape.error = ValueError("secret words")
        async with playing(tape) as viewer:
            await viewer.until(lambda: viewer.closed is not None)

        assert viewer.closed == (1011, "internal error")
        assert len(viewer.events) == 1

    with capture_logs() as logs:
        run(scene())
    assert [entry["event"] for entry in logs] == ["replay.crashed"]


def test_a_view_stands_between_the_recording_and_the_viewer() -> None:
    async def masked(stream: Stream) -> Stream:
        async for found in stream:
            if isinstance(found, JournalEvent):
                found = JournalEvent(found.sequence, found.at_ms, b'{"type":"masked"}')
            yield found

    async def scene() -> None:
        async with playing(Tape(DIALOGUE), view=cast("Any", masked), speed=100) as viewer:
            await viewer.until_done()

        assert {event["type"] for event in viewer.events[1:-1]} == {"masked"}
        assert viewer.numbers == [event.sequence for event in DIALOGUE]

    run(scene())


deeds = st.lists(
    st.tuples(
        st.floats(0, 30),
        st.fixed_dictionaries(
            {},
            optional={
                "speed": st.sampled_from([0.5, 1, 8, 100]),
                "paused": st.booleans(),
                "position": st.integers(0, 70_500),
                "max_silence_ms": st.sampled_from([None, 0, 200, 5000]),
            },
        ),
    ),
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(deeds)
def test_whatever_a_viewer_does_it_ends_with_the_whole_session_in_order(
    deeds: list[tuple[float, dict[str, Any]]],
) -> None:
    """Since the last restart every event is shown once and in order, but deltas whose end was given with them."""

    async def scene() -> None:
        async with playing(Tape(DIALOGUE)) as viewer:
            for after_s, fields in deeds:
                await asyncio.sleep(after_s)
                viewer.update(**fields)
            viewer.update(paused=False)
            num_states = len(deeds) + 2
            await viewer.until(lambda: len(viewer.of("avatar.replay.updated")) == num_states and viewer.is_done)

        assert viewer.of("error") == []
        numbers = viewer.numbers
        assert numbers == sorted(set(numbers))
        assert {1, 2, 8, 14, 15} <= set(numbers)
        answers = [set(numbers) & set(range(3, 8)), set(numbers) & set(range(9, 14))]
        positions = [fields["position"] for _, fields in deeds if "position" in fields]
        for answer, whole, end_ms in zip(answers, (set(range(3, 8)), set(range(9, 14))), (10_330, 70_200), strict=True):
            is_left_out = bool(positions) and positions[-1] >= end_ms
            assert answer == (set() if is_left_out else whole)

    run(scene())
