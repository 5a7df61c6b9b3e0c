"""Finds tool calls in what a model writes, piece by piece, in the Hermes format (`<tool_call>{"name": …, "arguments": …}</tool_call>`).

Source: the chat templates of Hermes 2 Pro and of Qwen 2.5 and 3. Formats of other models are vLLM's own parsers' job.
"""

import json
import re
from collections.abc import Sequence
from typing import Protocol

import msgspec

from sessions.generation import FunctionChoice, FunctionTool, Prompt, ToolCallDelta

_OPEN = "<tool_call>"
_CLOSE = "</tool_call>"
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]+)"\s*,\s*"arguments"\s*:\s*(?=[\[{])')


class ToolCallParser(Protocol):
    """Divides an answer into spoken text and tool calls. One for each answer."""

    num_calls: int

    def feed(self, text: str, token_ids: Sequence[int]) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """What the newly decoded text adds to the spoken text and to the calls."""

    def finish(self) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """What was held back in case more came."""


class HermesParser:
    """Streams arguments as they come. A call that is no JSON at all is given back as text: a model's slip must not be silence."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._buffer = ""  # outside of calls: pieces that may still become a call's opening; inside: the whole call
        self._num_held = 0  # of the buffer, what came before the newest piece
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
            return "", ()
        return rest.rstrip() if self.num_calls else rest, ()

    def _read_text(self, spoken: list[str]) -> bool:
        """Move text to `spoken`; True when a call was opened."""
        before, opening, after = self._buffer.partition(_OPEN)
        if self._is_after_call:  # the line ends between calls are not said
            before = before.lstrip()
            self._is_after_call = not before
        if opening:
            spoken.append(before.rstrip())
            self._buffer, self._is_inside, self._scan = after, True, 0
            self._depth, self._is_in_string, self._is_escaped, self._is_whole = 0, False, False, False
            return True
        held = next((n for n in range(len(_OPEN) - 1, 0, -1) if before.endswith(_OPEN[:n])), 0)
        sendable = before[: len(before) - held].rstrip()
        if len(sendable) < len(before) and not self.num_calls:
            # Whole pieces only: who goes on with what was sent must find the end of a token there.
            sendable = before[: self._num_held] if len(sendable) > self._num_held else ""
        spoken.append(sendable)
        self._buffer = before[len(sendable) :]
        return False

    def _read_call(self, spoken: list[str], calls: list[ToolCallDelta]) -> bool:
        """Move the open call's pieces to `calls`; True when it was closed."""
        if not self._scan and (head := _HEAD.match(self._buffer)):
            calls.append(ToolCallDelta(self.num_calls, head[1]))
            self._scan = head.end()
        if self._scan and not self._is_whole:
            begin = self._scan
            self._scan_arguments()
            if self._scan > begin:
                calls.append(ToolCallDelta(self.num_calls, arguments=self._buffer[begin : self._scan]))
            if not self._is_whole:
                return False
        start = self._buffer.find(_CLOSE, self._scan)
        if start < 0:
            return False
        if not self._scan:
            self._read_unusual(self._buffer[:start], spoken, calls)
        else:
            self.num_calls += 1
        self._buffer, self._is_inside = self._buffer[start + len(_CLOSE) :], False
        self._is_after_call = True
        return True

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

    def _read_unusual(self, body: str, spoken: list[str], calls: list[ToolCallDelta]) -> None:
        """A closed call whose name did not come first, or whose arguments are no object."""
        try:
            call = json.loads(body)
            arguments = call.get("arguments", {})
            text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            calls.append(ToolCallDelta(self.num_calls, str(call["name"]), text))
            self.num_calls += 1
        except (ValueError, KeyError, AttributeError):
            spoken.append(body)


class ForcedCallParser(HermesParser):
    """Reads an answer that `forced_call_schema` constrains to be one call and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.feed(_OPEN, ())

    def finish(self) -> tuple[str, tuple[ToolCallDelta, ...]]:
        is_cut_off = self._scan > 0 and not self._is_whole
        return "", () if is_cut_off else self.feed(_CLOSE, ())[1]


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
