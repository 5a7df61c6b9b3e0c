"""Output that an engine generates again, since it cannot go on in the middle of it: what clients already have is swallowed."""

from collections import deque
from collections.abc import Sequence

import msgspec

from sessions.generation import Chunk, ToolCallDelta
from sessions.items import FunctionCallItem, Item, MessageItem


class AnswerDiffers(Exception):
    """The engine generated other output than clients already have."""


class _Piece:
    """One item that clients have, whole or in part: a call, or a message when `name` is None."""

    __slots__ = ("is_begun", "name", "rest")

    def __init__(self, item: Item) -> None:
        self.is_begun = False
        match item:
            case FunctionCallItem():
                self.name: str | None = item.name
                self.rest = item.arguments
            case MessageItem():
                self.name = None
                self.rest = item.text
            case _:
                raise TypeError(f"an answer never holds {type(item).__name__}")

    def take(self, text: str) -> str:
        """Swallow the text as far as it is known; what goes beyond."""
        self.is_begun = True
        if text.startswith(self.rest):
            beyond = text[len(self.rest) :]
            self.rest = ""
            return beyond
        if not self.rest.startswith(text):
            raise AnswerDiffers
        self.rest = self.rest[len(text) :]
        return ""


class Repetition:
    """Items that clients have and the engine has yet to generate again, the last of them unfinished. `num_tokens` have been so far."""

    __slots__ = ("_pieces", "call_index", "num_tokens")

    def __init__(self, items: Sequence[Item]) -> None:
        self._pieces = deque(map(_Piece, items))
        self.num_tokens = 0
        # Of the call that was last generated again.
        self.call_index = -1

    @property
    def is_over(self) -> bool:
        """Whether all that clients have was generated again."""
        last = self._pieces[0]
        return len(self._pieces) == 1 and last.is_begun and not last.rest

    def take(self, chunk: Chunk) -> Chunk:
        """What of the chunk is new; `AnswerDiffers` when it contradicts what clients have. Its tokens are counted here."""
        self.num_tokens += chunk.num_tokens
        text = self._text(chunk.text) if chunk.text else ""
        calls = [delta for delta in map(self._call, chunk.tool_calls) if delta is not None]
        if chunk.finish_reason is not None and not self.is_over:
            raise AnswerDiffers
        return msgspec.structs.replace(chunk, text=text, num_tokens=0, tool_calls=tuple(calls))

    def _text(self, text: str) -> str:
        if self.is_over and self._pieces[0].name is not None:
            return text
        if self._pieces[0].name is not None:
            self._next()
        if self._pieces[0].name is not None:
            raise AnswerDiffers
        return self._beyond(self._pieces[0].take(text))

    def _call(self, delta: ToolCallDelta) -> ToolCallDelta | None:
        head = self._pieces[0]
        if self.is_over and (head.name is None or delta.index != self.call_index):
            return delta
        if head.name is None or (head.is_begun and delta.index != self.call_index):
            self._next()
            head = self._pieces[0]
        if head.name is None or (not head.is_begun and (delta.name or "") != head.name):
            raise AnswerDiffers
        self.call_index = delta.index
        beyond = self._beyond(head.take(delta.arguments))
        return ToolCallDelta(delta.index, None, beyond) if beyond else None

    def _beyond(self, text: str) -> str:
        if text and not self.is_over:
            raise AnswerDiffers
        return text

    def _next(self) -> None:
        done = self._pieces[0]
        if not done.is_begun or done.rest or len(self._pieces) == 1:
            raise AnswerDiffers
        self._pieces.popleft()
