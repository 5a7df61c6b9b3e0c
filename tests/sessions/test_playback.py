"""When a replay's events are due, at any speed, through pauses and changes; and what is left out of a catch-up. P8"""

import math
from collections.abc import Iterator, Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Struct

from sessions.playback import CatchUp, Playback
from sessions.replay_events import RefusedUpdate, decode_update

NOW_S = 1000.0


def make_playback(**changes: object) -> Playback:
    fields = {"speed": 1.0, "is_paused": False, "max_silence_ms": None, "now_s": NOW_S} | changes
    return Playback(**fields)  # type: ignore[arg-type]


def schedule(playback: Playback, positions: Sequence[int], *, lateness_s: float = 0.0) -> list[float]:
    """When each event is shown by a timer of that lateness."""
    shown: list[float] = []
    for position in positions:
        due_s = playback.due_s(position)
        assert due_s is not None
        now_s = max([due_s + lateness_s, *shown[-1:]])
        playback.passed(position, now_s)
        shown.append(now_s)
    return shown


positions_of_events = st.lists(st.integers(0, 5000), min_size=1, max_size=50).map(sorted)


@given(positions_of_events, st.floats(0.1, 100.0))
def test_events_keep_their_spacing_divided_by_the_speed(positions: list[int], speed: float) -> None:
    """P8"""
    shown = schedule(make_playback(speed=speed), positions)

    for position, at_s in zip(positions, shown, strict=True):
        assert at_s == pytest.approx(NOW_S + position / 1000 / speed, abs=1e-6)


@given(positions_of_events, st.floats(0.0, 0.015))
def test_a_timers_lateness_does_not_add_up(positions: list[int], lateness_s: float) -> None:
    shown = schedule(make_playback(), positions, lateness_s=lateness_s)

    assert shown[-1] == pytest.approx(NOW_S + positions[-1] / 1000 + lateness_s, abs=0.001)


def test_after_a_stall_the_spacing_stays_and_nothing_comes_in_a_burst() -> None:
    playback = make_playback()
    playback.passed(0, NOW_S)

    playback.passed(100, NOW_S + 3.0)

    assert playback.due_s(150) == pytest.approx(NOW_S + 3.05)


@given(positions_of_events, st.integers(0, 3000))
def test_no_silence_lasts_longer_than_the_cap_and_shorter_ones_stay(positions: list[int], cap_ms: int) -> None:
    shown = schedule(make_playback(max_silence_ms=cap_ms), positions)

    gaps = [after - before for before, after in zip([0, *positions], positions, strict=False)]
    spacings = [after - before for before, after in zip([NOW_S, *shown], shown, strict=False)]
    for gap, spacing in zip(gaps, spacings, strict=True):
        assert spacing == pytest.approx(min(gap, cap_ms) / 1000, abs=1e-6)


@given(
    gap_ms=st.integers(0, 60_000),
    changes=st.lists(
        st.tuples(st.floats(0.0, 5.0), st.floats(0.1, 100.0), st.booleans(), st.none() | st.integers(0, 60_000)),
        max_size=20,
    ),
)
def test_changes_within_a_silence_keep_what_was_played_of_it(
    gap_ms: int, changes: list[tuple[float, float, bool, int | None]]
) -> None:
    """A model adds up what each stretch played; the event is due when the silence, or its cap, is used up."""
    playback, now_s, played_ms = make_playback(), NOW_S, 0.0
    playback.passed(0, now_s)
    speed, is_paused = 1.0, False
    for after_s, new_speed, new_paused, new_cap in changes:
        now_s += after_s
        played_ms += 0.0 if is_paused else after_s * 1000 * speed
        playback.change(now_s, speed=new_speed, is_paused=new_paused, max_silence_ms=new_cap)
        speed, is_paused, cap_ms = new_speed, new_paused, math.inf if new_cap is None else new_cap

        silence_ms = min(gap_ms, cap_ms)
        assert playback.position_ms(gap_ms, now_s) == pytest.approx(min(played_ms, silence_ms), abs=1.01)
        if is_paused:
            assert playback.due_s(gap_ms) is None
        else:
            remaining_s = max(0.0, silence_ms - played_ms) / 1000 / speed
            assert playback.due_s(gap_ms) == pytest.approx(now_s + remaining_s, abs=1e-6)


def test_nothing_is_due_while_paused_and_the_rest_of_a_silence_follows_the_pause() -> None:
    playback = make_playback()
    playback.passed(0, NOW_S)

    playback.change(NOW_S + 0.4, is_paused=True)
    assert playback.due_s(1000) is None
    assert playback.position_ms(1000, NOW_S + 50) == 400
    playback.change(NOW_S + 100, is_paused=False)

    assert playback.due_s(1000) == pytest.approx(NOW_S + 100.6)


def test_after_a_seek_the_rest_of_the_silence_is_played() -> None:
    playback = make_playback(speed=2.0)

    playback.seek(700, NOW_S)

    assert playback.due_s(1700) == pytest.approx(NOW_S + 0.5)
    assert playback.due_s(100) == NOW_S


def test_a_clock_that_went_back_between_two_events_delays_nothing() -> None:
    playback = make_playback()
    playback.seek(5000, NOW_S)

    assert playback.due_s(4000) == NOW_S
    playback.passed(4000, NOW_S)
    assert playback.due_s(5010) == pytest.approx(NOW_S + 0.01)


# What is caught up


class Event(Struct, omit_defaults=True):
    """As the wire has them, as far as it matters here."""

    type: str
    response_id: str | None = None
    item_id: str | None = None
    content_index: int | None = None
    number: int = 0


def encode(events: Sequence[Event]) -> list[bytes]:
    return [msgspec.json.encode(msgspec.structs.replace(event, number=n)) for n, event in enumerate(events)]


def caught_up(events: Sequence[bytes], **options: int) -> list[bytes]:
    catch_up = CatchUp(**options)
    shown = [ready for event in events for ready in catch_up.take(event)]
    return shown + catch_up.finish()


kinds = st.sampled_from(
    [
        "response.output_text.delta",
        "response.output_text.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.created",
        "response.done",
        "avatar.segment.done",
        "conversation.item.added",
    ]
)
some_events = st.lists(
    st.builds(
        Event,
        type=kinds,
        response_id=st.sampled_from(["resp_1", "resp_2"]),
        item_id=st.sampled_from(["item_1", "item_2"]),
        content_index=st.sampled_from([None, 0, 1]),
    ),
    max_size=60,
).map(encode)


def superfluous(events: Sequence[bytes]) -> Iterator[bytes]:
    """The deltas whose end follows."""
    heads = [msgspec.json.decode(event, type=Event) for event in events]
    for index, head in enumerate(heads):
        kind, _, last = head.type.rpartition(".")
        place = (kind + ".done", head.response_id, head.item_id, head.content_index)
        later = ((other.type, other.response_id, other.item_id, other.content_index) for other in heads[index:])
        if last == "delta" and place in later:
            yield events[index]


@given(some_events)
def test_a_catch_up_shows_everything_in_order_but_deltas_whose_end_follows(events: list[bytes]) -> None:
    dropped = set(superfluous(events))

    assert caught_up(events) == [event for event in events if event not in dropped]


@given(some_events, st.integers(1, 2000))
def test_a_catch_up_of_little_memory_leaves_out_less_but_never_anything_else(events: list[bytes], limit: int) -> None:
    dropped = set(superfluous(events))
    catch_up = CatchUp(max_held_bytes=limit)

    shown = []
    for number, event in enumerate(events):
        shown += catch_up.take(event)
        held = sum(map(len, set(events[: number + 1]) - dropped - set(shown)))
        assert held <= limit + len(event)
    shown += catch_up.finish()

    assert [event for event in events if event in set(shown)] == shown
    assert set(events) - dropped <= set(shown)


def test_a_catch_up_holds_no_more_than_an_open_answer() -> None:
    delta = Event(type="response.output_text.delta", response_id="resp_1", item_id="item_1", content_index=0)
    done = msgspec.structs.replace(delta, type="response.output_text.done")
    before, first, between, second, end, after = encode(
        [
            Event(type="response.created"),
            delta,
            Event(type="conversation.item.added"),
            delta,
            done,
            Event(type="response.done"),
        ]
    )
    catch_up = CatchUp()

    shown = [catch_up.take(event) for event in (before, first, between, second, end, after)]

    assert shown == [[before], [], [], [], [between, end], [after]]
    assert catch_up.finish() == []


def test_an_event_that_cannot_be_read_is_shown_like_any_other() -> None:
    events = [b"not json", b'{"type":7}', b"[1]", b'{"type":"response.created"}']

    assert caught_up(events) == events


# What a viewer may say


def refused(frame: str) -> tuple[str, str | None, str | None]:
    with pytest.raises(RefusedUpdate) as refusal:
        decode_update(frame)
    return refusal.value.reason.code, refusal.value.reason.param, refusal.value.event_id


def test_an_update_is_read() -> None:
    update = decode_update('{"type":"avatar.replay.update","speed":4,"paused":true,"max_silence_ms":null}')

    assert (update.speed, update.paused, update.position, update.max_silence_ms) == (4.0, True, UNSET, None)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ('"speed":0', "invalid_value", "speed"),
        ('"speed":0.09', "invalid_value", "speed"),
        ('"speed":100.5', "invalid_value", "speed"),
        ('"speed":1e999', "invalid_type", "speed"),
        ('"speed":"fast"', "invalid_type", "speed"),
        ('"position":-1', "integer_below_min_value", "position"),
        ('"position":1.5', "invalid_type", "position"),
        ('"position":null', "invalid_type", "position"),
        ('"max_silence_ms":-1', "integer_below_min_value", "max_silence_ms"),
        ('"max_silence_ms":86400001', "integer_above_max_value", "max_silence_ms"),
        ('"paused":1', "invalid_type", "paused"),
        ('"role":"admin"', "unknown_parameter", "role"),
    ],
)
def test_a_wrong_update_is_refused_by_name(fields: str, code: str, param: str) -> None:
    frame = f'{{"type":"avatar.replay.update","event_id":"mine",{fields}}}'

    assert refused(frame) == (code, param, "mine")


@pytest.mark.parametrize(
    ("frame", "code", "param"),
    [
        ("", "invalid_json", None),
        ("[]", "invalid_event", None),
        ('{"type":"avatar.replay.update"', "invalid_json", None),
        ("{}", "missing_required_parameter", "type"),
        ('{"type":7}', "invalid_type", "type"),
        ('{"type":"response.create"}', "replay_read_only", "type"),
        ('{"type":"avatar.feedback.create","item_id":"x"}', "replay_read_only", "type"),
        ('{"x":' + "[" * 100_000, "invalid_json", None),
    ],
)
def test_whatever_else_is_said_is_refused(frame: str, code: str, param: str | None) -> None:
    assert refused(frame) == (code, param, None)
