"""Finds tool calls in what a model writes, piece by piece, in the Hermes format (`<tool_call>{"name": …, "arguments": …}</tool_call>`).

Only tools that were offered are called, whatever the model was talked into writing: a document that it read may have asked for others.
Source: the chat templates of Hermes 2 Pro and of Qwen 2.5 and 3. Formats of other models are vLLM's own parsers' job.
"""

import json
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

import msgspec
import structlog

from engine.base import EngineError
from sessions.generation import FunctionChoice, FunctionTool, Prompt, ToolCallDelta

log = structlog.get_logger()

_OPEN = "<tool_call>"
_CLOSE = "</tool_call>"
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]+)"\s*,\s*"arguments"\s*:\s*(?=[\[{])')
_NO_OBJECT = re.compile(r"\s*[^\s{]")


def offered_names(prompt: Prompt) -> frozenset[str]:
    """The tools that the answer may call: those of the prompt, or the one that its tool choice demands."""
    match prompt.tool_choice:
        case "none":
            return frozenset()
        case FunctionChoice(name=name):
            return frozenset(tool.name for tool in prompt.tools if tool.name == name)
        case _:
            return frozenset(tool.name for tool in prompt.tools)


class ToolCallParser(Protocol):
    """Divides an answer into spoken text and tool calls. One for each answer."""

    num_calls: int

    def feed(self, text: str, token_ids: Sequence[int]) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """What the newly decoded text adds to the spoken text and to the calls."""

    def finish(self) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """What was held back in case more came."""


class HermesParser:
    """Streams arguments as they come. What is no call of a tool with one of the `names` is text, tags and all.

    Text is given as it was written, and an opening that was refused is forgotten: who goes on after any of it comes to the same answer.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.num_calls = 0
        self._names = names
        self._buffer = ""  # outside of calls: pieces that may still become a call's opening; inside: those and the call
        self._num_held = 0  # of the buffer, what came before the newest piece
        self._num_searched = 0  # of the buffer, where no opening is looked for; inside: up to the call's body
        self._start = 0  # inside: where the opening begins
        self._is_inside = False
        self._is_after_call = False
        self._scan = 0  # inside: up to where the arguments were read, 0 before their start is known
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False
        self._is_whole = False

    def feed(self, text: str, token_ids: Sequence[int]) -> tuple[str, tuple[ToolCallDelta, ...]]:
        is_plain = not (self._is_inside or self._is_after_call or self._buffer)
        if is_plain and "<" not in text and not text[-1:].isspace():
            return text, ()  # nearly every piece of an answer without calls
        self._num_held = len(self._buffer)
        self._buffer += text
        spoken: list[str] = []
        calls: list[ToolCallDelta] = []
        while self._read_call(spoken, calls) if self._is_inside else self._read_text(spoken):
            pass
        return "".join(spoken), tuple(calls)

    def finish(self) -> tuple[str, tuple[ToolCallDelta, ...]]:
        rest, self._buffer = self._buffer, ""
        if self._is_inside:
            return "" if self._scan else rest[: self._start].rstrip(), ()
        return rest.rstrip() if self.num_calls else rest, ()

    def _read_text(self, spoken: list[str]) -> bool:
        """Move text to `spoken`; True when a call may have been opened."""
        if self._is_after_call:  # the line ends between calls are not said
            self._buffer = self._buffer.lstrip()
            self._is_after_call = not self._buffer
        start = self._buffer.find(_OPEN, self._num_searched)
        is_opened = start >= 0
        if not is_opened:
            held = next((n for n in range(len(_OPEN) - 1, 0, -1) if self._buffer.endswith(_OPEN[:n])), 0)
            start = len(self._buffer) - held
        num_sendable = len(self._buffer[:start].rstrip())
        if num_sendable < len(self._buffer) and not self.num_calls:
            # Whole pieces only: who goes on with what was sent must find the end of a token there.
            num_sendable = self._num_held if num_sendable > self._num_held else 0
        spoken.append(self._buffer[:num_sendable])
        self._buffer = self._buffer[num_sendable:]
        self._num_held = max(0, self._num_held - num_sendable)
        self._num_searched = max(0, self._num_searched - num_sendable)
        if is_opened:
            self._open(start - num_sendable, start - num_sendable + len(_OPEN))
        return is_opened

    def _open(self, start: int, body: int) -> None:
        self._is_inside, self._start, self._num_searched, self._scan = True, start, body, 0
        self._depth, self._is_in_string, self._is_escaped, self._is_whole = 0, False, False, False

    def _read_call(self, spoken: list[str], calls: list[ToolCallDelta]) -> bool:
        """Move the open call's pieces to `calls`; True when it was closed, or is none."""
        body = self._num_searched
        if not self._scan:
            head = _HEAD.match(self._buffer, body)
            if head is not None and head[1] in self._names:
                self._begin_call(head[1], spoken, calls)
                self._scan = head.end()
            elif head is not None or _NO_OBJECT.match(self._buffer, body):
                self._is_inside = False
                return True
        if self._scan and not self._is_whole:
            begin = self._scan
            self._scan_arguments()
            if self._scan > begin:
                calls.append(ToolCallDelta(self.num_calls, arguments=self._buffer[begin : self._scan]))
            if not self._is_whole:
                return False
        end = self._buffer.find(_CLOSE, self._scan or body)
        if end < 0:
            return False
        self._is_inside = False
        if self._scan or self._read_unusual(self._buffer[body:end], spoken, calls):
            self.num_calls += 1
            self._buffer, self._num_searched = self._buffer[end + len(_CLOSE) :], 0
            self._is_after_call = True
        return True

    def _begin_call(self, name: str, spoken: list[str], calls: list[ToolCallDelta]) -> None:
        spoken.append(self._buffer[: self._start].rstrip())
        calls.append(ToolCallDelta(self.num_calls, name))

    def _scan_arguments(self) -> None:
        """Go on to the end of the arguments' value, or of the buffer."""
        for place in range(self._scan, len(self._buffer)):
            letter = self._buffer[place]
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_in_string:
                self._is_escaped = letter == "\\"
                self._is_in_string = letter != '"'
            elif letter == '"':
                self._is_in_string = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._scan, self._is_whole = place + 1, True
                    return
        self._scan = len(self._buffer)

    def _read_unusual(self, body: str, spoken: list[str], calls: list[ToolCallDelta]) -> bool:
        """A closed call whose name did not come first, or whose arguments are no object; False when it is no call."""
        try:
            call = json.loads(body)
            name, arguments = str(call["name"]), call.get("arguments", {})
            text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        except (ValueError, KeyError, RecursionError):
            return False
        if name not in self._names:
            return False
        self._begin_call(name, spoken, calls)
        calls.append(ToolCallDelta(self.num_calls, arguments=text))
        return True


class ForcedCallParser(HermesParser):
    """Reads an answer that `forced_call_schema` constrains to be one call and nothing else."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(names)
        self._open(0, 0)

    def finish(self) -> tuple[str, tuple[ToolCallDelta, ...]]:
        if not self._is_inside:
            return super().finish()
        is_cut_off = self._scan > 0 and not self._is_whole
        return "", () if is_cut_off else self.feed(_CLOSE, ())[1]


class OfferedCalls:
    """Of the calls that somebody else found in an answer, those of offered tools. One for each answer.

    Others are left out with a warning. They are not spoken: how the model wrote them is not known here, and an answer can be gone on with
    only after text that is the model's own. `end` sees to it that an answer of nothing else is no success.
    """

    def __init__(self, prompt: Prompt) -> None:
        self._response_id = prompt.response_id
        self._names = offered_names(prompt)
        self._is_offered: dict[int, bool] = {}
        self._num_refused = 0

    def only(self, deltas: Iterable[ToolCallDelta]) -> tuple[ToolCallDelta, ...]:
        """Those of the pieces that belong to calls of offered tools."""
        return tuple(delta for delta in deltas if self._admits(delta))

    def end(self, *, is_empty: bool) -> None:
        """The answer has ended; `EngineError` when nothing is left of it, for silence would pass for an answer."""
        if is_empty and self._num_refused:
            raise EngineError("the model called nothing but tools that were not offered")

    def _admits(self, delta: ToolCallDelta) -> bool:
        if delta.name is not None:
            is_offered = delta.name in self._names
            if not is_offered and self._is_offered.get(delta.index) is not False:
                self._num_refused += 1
                log.warning("tool_not_offered", response_id=self._response_id, call_index=delta.index)
            self._is_offered[delta.index] = is_offered
        return self._is_offered.get(delta.index, False)


def forced_call_schema(prompt: Prompt) -> dict[str, object] | None:
    """The JSON schema of the call that the prompt's tool choice demands, None when it leaves the model free."""
    match prompt.tool_choice:
        case "required":
            tools = prompt.tools
        case FunctionChoice(name=name):
            tools = tuple(tool for tool in prompt.tools if tool.name == name)
        case _:
            return None
    if not tools:
        return None
    return {"anyOf": [_call_schema(tool) for tool in tools]}


def _call_schema(tool: FunctionTool) -> dict[str, object]:
    arguments: dict[str, object] = msgspec.json.decode(tool.parameters, type=dict[str, object]) or {"type": "object"}
    properties = {"name": {"type": "string", "enum": [tool.name]}, "arguments": arguments}
    return {
        "type": "object",
        "properties": properties,
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
