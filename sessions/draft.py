"""The effects of the input at hand, as they are written: events get the session's next numbers and the ids made of them."""

from collections.abc import Callable
from typing import Concatenate, ParamSpec

from sessions.effects import Effects
from sessions.server_events import ServerEvent

_Fields = ParamSpec("_Fields")


class Draft:
    """One session's effects in the making."""

    __slots__ = ("_is_changed", "effects", "event_prefix", "next_sequence")

    def __init__(self, event_prefix: str, next_sequence: int) -> None:
        self.event_prefix = event_prefix
        self.next_sequence = next_sequence
        self.effects = Effects()
        self._is_changed = False

    def begin(self) -> Effects:
        """An input begins; its effects, still empty."""
        self.effects = Effects()
        self._is_changed = False
        return self.effects

    def emit(
        self, event: Callable[Concatenate[str, _Fields], ServerEvent], *args: _Fields.args, **kwargs: _Fields.kwargs
    ) -> None:
        """Add an event of that type, its id the next; the arguments are its other fields."""
        sequence = self.next_sequence
        self.next_sequence = sequence + 1
        self.effects.events.append(event(f"{self.event_prefix}{sequence}", *args, **kwargs))

    def changed(self) -> None:
        """The stored state differs from here on, and is to be written anew with these effects."""
        self._is_changed = True

    def finish(self, encode_state: Callable[[], bytes]) -> Effects:
        """The input's effects, with the state when it changed."""
        if self._is_changed:
            self.effects.state = encode_state()
        return self.effects
