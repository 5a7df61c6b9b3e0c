"""When what was recorded is due again: a session's events at their own pace times a speed, and all up to a position at once.

Knows neither clock nor wire: positions are milliseconds since the session's first event, `now_s` is any clock that only goes forward.
"""

import math

import msgspec
from msgspec import UNSET, Struct, UnsetType

# An event that could not be shown in time moves the rest with it, so that their spacing stays; a timer's own lateness does not add up.
_MAX_LATE_S = 0.02
# An answer without an end, whose deltas nothing makes superfluous, is not gathered for ever.
_MAX_HELD_BYTES = 2 << 20


class Playback:
    """A place in a session, moving while it is not paused. Silences longer than `max_silence_ms` are cut to that."""

    __slots__ = ("_passed_ms", "_progress_ms", "_since_s", "is_paused", "max_silence_ms", "speed")

    def __init__(self, *, speed: float, is_paused: bool, max_silence_ms: int | None, now_s: float) -> None:
        self.speed = speed
        self.is_paused = is_paused
        self.max_silence_ms = max_silence_ms
        # All up to `_passed_ms` was shown, and of the silence after it `_progress_ms` had been played at `_since_s`.
        self._passed_ms = 0
        self._progress_ms = 0.0
        self._since_s = now_s

    def seek(self, position_ms: int, now_s: float) -> None:
        """All up to that position was shown, and no more."""
        self._passed_ms = position_ms
        self._progress_ms = 0.0
        self._since_s = now_s

    def change(
        self,
        now_s: float,
        *,
        speed: float | UnsetType = UNSET,
        is_paused: bool | UnsetType = UNSET,
        max_silence_ms: int | None | UnsetType = UNSET,
    ) -> None:
        """Go on from where it is in another way."""
        self._progress_ms = self._progress(now_s)
        self._since_s = now_s
        if speed is not UNSET:
            self.speed = speed
        if is_paused is not UNSET:
            self.is_paused = is_paused
        if max_silence_ms is not UNSET:
            self.max_silence_ms = max_silence_ms

    def due_s(self, position_ms: int) -> float | None:
        """When the next event is due, which is at that position; None while paused. One that lies before the last is due at once."""
        if self.is_paused:
            return None
        remaining_ms = max(0.0, self._silence_ms(position_ms) - self._progress_ms)
        return self._since_s + remaining_ms / 1000 / self.speed

    def passed(self, position_ms: int, now_s: float) -> None:
        """The event at that position, which was due, is shown now."""
        due_s = self.due_s(position_ms)
        if due_s is None or now_s - due_s > _MAX_LATE_S:
            due_s = now_s
        self.seek(max(self._passed_ms, position_ms), due_s)

    def position_ms(self, next_ms: float, now_s: float) -> int:
        """Where it is, when the next event is at `next_ms` (infinity when nobody knows of one)."""
        return self._passed_ms + round(min(self._progress(now_s), self._silence_ms(next_ms)))

    def _progress(self, now_s: float) -> float:
        if self.is_paused:
            return self._progress_ms
        return self._progress_ms + max(0.0, now_s - self._since_s) * 1000 * self.speed

    def _silence_ms(self, next_ms: float) -> float:
        longest = math.inf if self.max_silence_ms is None else self.max_silence_ms
        return min(max(0.0, next_ms - self._passed_ms), longest)


class _Head(Struct, frozen=True):
    """What tells to which part of an answer an event belongs."""

    type: str = ""
    response_id: str | None = None
    item_id: str | None = None
    output_index: int | None = None
    content_index: int | None = None


_Key = tuple[str, str | None, str | None, int | None, int | None]

_decoder = msgspec.json.Decoder(_Head)


class CatchUp:
    """What is shown at once: all events in order, but deltas whose `…done` follows among them, since it says it all.

    Holds what comes after the first delta that still waits for its end: at most an answer, and never more than `max_held_bytes`.
    """

    __slots__ = ("_held", "_max_held_bytes", "_num_held_bytes", "_open")

    def __init__(self, *, max_held_bytes: int = _MAX_HELD_BYTES) -> None:
        self._max_held_bytes = max_held_bytes
        self._held: list[tuple[_Key | None, bytes]] = []
        self._open: set[_Key] = set()
        self._num_held_bytes = 0

    def take(self, event: bytes) -> list[bytes]:
        """The next event; what can be shown now."""
        kind, key = _place(event)
        if kind == "done" and key in self._open:
            self._held = [entry for entry in self._held if entry[0] != key]
            self._num_held_bytes = sum(len(held) for _, held in self._held)
            self._open.remove(key)
        if kind == "delta":
            self._open.add(key)
        elif not self._open and not self._held:
            return [event]
        self._held.append((key if kind == "delta" else None, event))
        self._num_held_bytes += len(event)
        return self.finish() if not self._open or self._num_held_bytes > self._max_held_bytes else []

    def finish(self) -> list[bytes]:
        """No more events come, or none for now: what was held."""
        shown = [event for _, event in self._held]
        self._held.clear()
        self._open.clear()
        self._num_held_bytes = 0
        return shown


def _place(event: bytes) -> tuple[str, _Key]:
    try:
        head = _decoder.decode(event)
    except msgspec.DecodeError:
        head = _Head()
    kind, _, last = head.type.rpartition(".")
    return last, (kind, head.response_id, head.item_id, head.output_index, head.content_index)
