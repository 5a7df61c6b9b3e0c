"""A session's events as text for a terminal. Pure: it is given events and returns what to print, with every control character escaped."""

import msgspec
from msgspec import Struct


class _Part(Struct, frozen=True):
    text: str | None = None
    transcript: str | None = None


class _Item(Struct, frozen=True):
    id: str = ""
    type: str = ""
    role: str = ""
    content: tuple[_Part, ...] = ()
    name: str = ""
    arguments: str = ""
    output: str = ""


class _Details(Struct, frozen=True):
    reason: str | None = None


class _Response(Struct, frozen=True):
    status: str = ""
    status_details: _Details | None = None


class _Rating(Struct, frozen=True):
    rating: str | None = None
    reason: str | None = None
    comment: str | None = None


class _Error(Struct, frozen=True):
    code: str | None = None
    message: str = ""


class _Event(Struct, frozen=True):
    """What is shown of any event."""

    type: str = ""
    delta: str = ""
    item_id: str = ""
    item: _Item | None = None
    response: _Response | None = None
    feedback: _Rating | None = None
    error: _Error | None = None
    char_end: int | None = None


_decoder = msgspec.json.Decoder(_Event)


def escaped(text: str) -> str:
    """The text with everything escaped that is not plainly printable: control, bidi and half characters; newlines are indented."""
    return "\n    ".join(
        "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)
        for line in text.split("\n")
    )


def escaped_json(line: str) -> str:
    """The same JSON value with everything escaped that is not plainly printable: JSON itself lets all but the oldest controls stand."""
    return "".join(char if char.isprintable() else _json_escape(char) for char in line)


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


class Transcript:
    """Lines of who said what when; an answer grows on its line as its deltas come."""

    def __init__(self) -> None:
        self._open_item: str | None = None

    def event(self, position_ms: int, event: bytes) -> str:
        """What to print of an event at that position; empty for one that is only between machines."""
        try:
            found = _decoder.decode(event)
        except msgspec.DecodeError:
            return self.note("an event that cannot be read")
        if found.type == "response.output_text.delta":
            return self._delta(position_ms, found)
        if found.type == "response.output_text.done" and found.item_id == self._open_item:
            return self._end_line()
        said = _said(found)
        return self._end_line() + f"[{_clock(position_ms)}] {said}\n" if said else ""

    def note(self, text: str) -> str:
        """A remark of ours."""
        return self._end_line() + f"-- {escaped(text)}\n"

    def _delta(self, position_ms: int, found: _Event) -> str:
        begin = ""
        if found.item_id != self._open_item:
            begin = f"{self._end_line()}[{_clock(position_ms)}] assistant: "
            self._open_item = found.item_id
        return begin + escaped(found.delta)

    def _end_line(self) -> str:
        was_open, self._open_item = self._open_item is not None, None
        return "\n" if was_open else ""


def _said(found: _Event) -> str:
    match found.type:
        case "session.created":
            return "session begins"
        case "conversation.item.done" if found.item is not None:
            return _item(found.item)
        case "response.output_item.done" if found.item is not None and found.item.type == "function_call":
            return escaped(f"calls {found.item.name}({found.item.arguments})")
        case "response.done" if found.response is not None and found.response.status != "completed":
            details = found.response.status_details
            reason = f" ({details.reason})" if details is not None and details.reason else ""
            return escaped(f"answer {found.response.status}{reason}")
        case "avatar.item.truncated":
            return f"heard only the first {found.char_end} characters"
        case "avatar.feedback.created" if found.feedback is not None:
            rating = found.feedback
            words = [f"rates {rating.rating or 'no more'}", *filter(None, (rating.reason, rating.comment))]
            return escaped(": ".join(words))
        case "avatar.feedback.deleted":
            return "withdraws a rating"
        case "error" if found.error is not None:
            return escaped(f"error {found.error.code or ''}: {found.error.message}")
        case _:
            return ""


def _item(item: _Item) -> str:
    """What was said by anyone but the assistant, whose deltas say it."""
    if item.type == "function_call_output":
        return escaped(f"tool answers: {item.output}")
    if item.type != "message" or item.role == "assistant":
        return ""
    text = " ".join(part.text or part.transcript or "" for part in item.content)
    return escaped(f"{item.role}: {text}")


def _clock(position_ms: int) -> str:
    minutes, ms = divmod(position_ms, 60_000)
    return f"{minutes // 60}:{minutes % 60:02}:{ms / 1000:06.3f}"
