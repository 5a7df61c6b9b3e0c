"""An engine without a model: deterministic answers at a set pace, for tests and for load. What it does is asked for in the user's text.

Directives in the last user message, anywhere in its text:
`[tokens N]` length · `[pace N]` tokens a second · `[slow]` 4 tokens a second · `[wait S]` seconds before the first token ·
`[hang]` never begins · `[echo TEXT]` answers TEXT · `[empty]` answers nothing · `[call NAME {json}]` calls a tool, if the prompt has any;
one that it has not is only said · `[fail]`, `[fail after N]` the engine is lost, after N tokens · `[overloaded]` · `[too long]`.
An answer that is gone on with is the same answer: N counts from its beginning, and the first token is not waited for again.
"""

import asyncio
import json
import re
import zlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator, Sequence
from types import TracebackType
from typing import Self, assert_never

import msgspec
from msgspec import Raw, Struct

from engine.base import Capacity, EngineOverloaded, EngineUnavailable, PromptTooLong, epoch_ms
from engine.tool_calls import offered_names
from sessions.generation import Chunk, FinishReason, FunctionTool, Origin, Prompt, ToolCallDelta, Usage
from sessions.items import FunctionCallItem, FunctionCallOutputItem, Item, MessageItem

_encoder = msgspec.json.Encoder()
_TEXT = (
    "the answer comes word by word and every one of them was written before you asked so that you can tell at once whether "
    "something got lost on its way or came twice while a listener follows with ease and nobody waits for what is not there"
)
_WORDS = _TEXT.split()
_WORDS_A_SENTENCE = 9
_MAX_REMEMBERED_SESSIONS = 500
_DIRECTIVE = re.compile(r"\[(tokens|pace|slow|wait|hang|echo|empty|call|fail|overloaded|too long)\b", re.IGNORECASE)
_PIECE = re.compile(r"\s*\S+\s*$|\s*\S+|\s+")
_PLAIN = tuple(Chunk(text=f" {word}", num_tokens=1) for word in _WORDS)
_FIRST = tuple(Chunk(text=f" {word.capitalize()}", num_tokens=1) for word in _WORDS)
_LAST = tuple(Chunk(text=f" {word}.", num_tokens=1) for word in _WORDS)


class ScriptedEngine:
    """Streams prepared chunks. `tokens_per_s` None or 0: as fast as it can while other tasks run. `max_requests` 0: no bound.

    An aborted answer ends without a last chunk. `break_down` and `recover` play the engine's death and its return.
    """

    def __init__(
        self,
        name: str = "demo",
        *,
        tokens_per_s: float | None = None,
        num_tokens: int = 48,
        max_requests: int = 0,
        max_context_tokens: int = 32_768,
    ) -> None:
        self._name = name
        self._tokens_per_s = tokens_per_s or 0.0
        self._num_tokens = num_tokens
        self._max_requests = max_requests
        self._max_context_tokens = max_context_tokens
        self._streams: dict[str, _Stream] = {}
        self._pacer = _Pacer()
        self._memory: OrderedDict[str, tuple[tuple[str, int], ...]] = OrderedDict()
        self._failure: str | None = None

    @property
    def model_name(self) -> str:
        return self._name

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for response_id in tuple(self._streams):
            await self.abort(response_id)

    async def generate(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        if self._failure is not None:
            raise EngineUnavailable(self._failure)
        if self._max_requests and len(self._streams) >= self._max_requests:
            raise EngineOverloaded(f"{self._max_requests} answers are running")
        script = _script(prompt, self._num_tokens, self._tokens_per_s)
        input_tokens, cached_tokens = self._count(prompt)
        if script.is_too_long:
            raise PromptTooLong(max(input_tokens, self._max_context_tokens + 1), self._max_context_tokens)
        origin = _origin(prompt, script)
        loop = asyncio.get_running_loop()
        stream = self._streams[prompt.response_id] = _Stream()
        try:
            begin = loop.time() + script.wait_s
            if script.wait_s:
                stream.waiter = self._pacer.wait_until(begin)
                await stream.waiter
            for number, chunk in enumerate(script.chunks):
                if script.tokens_per_s and (deadline := begin + number / script.tokens_per_s) > loop.time():
                    stream.waiter = self._pacer.wait_until(deadline)
                    await stream.waiter
                elif number:
                    await asyncio.sleep(0)
                if stream.is_aborted:
                    return
                if self._failure is not None:
                    raise EngineUnavailable(self._failure)
                if number == 0 or chunk.finish_reason is not None:
                    num_output = min(script.num_spoken + number + 1, script.num_tokens)
                    usage = Usage(input_tokens, num_output, cached_tokens)
                    origin = _at_token(origin, chunk, epoch_ms())
                    chunk = msgspec.structs.replace(chunk, usage=usage, origin=origin)
                yield chunk
            if script.is_failing:
                raise EngineUnavailable("the script asked for a failure")
        finally:
            if self._streams.get(prompt.response_id) is stream:
                del self._streams[prompt.response_id]

    async def abort(self, response_id: str) -> None:
        if (stream := self._streams.pop(response_id, None)) is not None:
            stream.is_aborted = True
            if stream.waiter is not None and not stream.waiter.done():
                stream.waiter.set_result(None)

    def capacity(self) -> Capacity:
        return Capacity(len(self._streams), 0, self._max_requests, self._max_context_tokens)

    def failure(self) -> str | None:
        return self._failure

    def break_down(self, reason: str) -> None:
        """Fail what runs, at its next token, and refuse what comes, until `recover`."""
        self._failure = reason

    def recover(self) -> None:
        self._failure = None

    def _count(self, prompt: Prompt) -> tuple[int, int]:
        """Words of the prompt, and how many of them begin the session's previous prompt too."""
        counts = (("", len(prompt.instructions.split())), *((item.id, _num_words(item)) for item in prompt.items))
        before = self._memory.pop(prompt.session_id, ())
        self._memory[prompt.session_id] = counts
        if len(self._memory) > _MAX_REMEMBERED_SESSIONS:
            self._memory.popitem(last=False)
        num_cached = 0
        for now, then in zip(counts, before, strict=False):
            if now != then:
                break
            num_cached += now[1]
        return sum(number for _, number in counts), num_cached


class _Stream:
    """One running answer: what it waits for, and whether it was aborted."""

    __slots__ = ("is_aborted", "waiter")

    def __init__(self) -> None:
        self.is_aborted = False
        self.waiter: asyncio.Future[None] | None = None


class _Pacer:
    """Wakes streams at absolute times. All that are due in one millisecond share one timer: a timer each would cost several µs a token."""

    def __init__(self) -> None:
        self._waiters: dict[int, list[asyncio.Future[None]]] = {}

    def wait_until(self, deadline: float) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        tick = int(deadline * 1000) + 1
        if (waiters := self._waiters.get(tick)) is not None:
            waiters.append(future)
        else:
            self._waiters[tick] = [future]
            loop.call_at(tick / 1000, self._wake, tick)
        return future

    def _wake(self, tick: int) -> None:
        for future in self._waiters.pop(tick):
            if not future.done():
                future.set_result(None)


class _Script(Struct, frozen=True):
    """What one answer will do: what is left of its chunks, its tokens in all, and how many of those were spoken before."""

    chunks: Sequence[Chunk]
    num_tokens: int
    num_spoken: int
    tokens_per_s: float
    wait_s: float
    is_failing: bool
    is_too_long: bool


def _origin(prompt: Prompt, script: _Script) -> Origin:
    """A script has no model: its prompt is what such a one would read, as plain lines."""
    lines = [f"system: {prompt.instructions}"] if prompt.instructions else []
    for item in prompt.items:
        match item:
            case MessageItem():
                lines.append(f"{item.role}: {item.text}")
            case FunctionCallItem():
                lines.append(f"call: {item.name} {item.arguments}")
            case FunctionCallOutputItem():
                lines.append(f"tool: {item.output}")
            case _:
                assert_never(item)
    sampling = {"temperature": 0.0, "max_tokens": prompt.max_output_tokens, "tokens_per_s": script.tokens_per_s}
    return Origin(
        prompt="\n".join([*lines, f"assistant: {prompt.spoken}"]),
        sampling=Raw(_encoder.encode(sampling)),
        taken_ms=epoch_ms(),
    )


def _at_token(origin: Origin, chunk: Chunk, now_ms: int) -> Origin:
    """What is known at the first and at the last chunk; an empty answer has no token."""
    if not chunk.num_tokens and origin.first_token_ms is None:
        return origin
    return msgspec.structs.replace(
        origin,
        first_token_ms=now_ms if origin.first_token_ms is None else origin.first_token_ms,
        last_token_ms=None if chunk.finish_reason is None else now_ms,
    )


def _script(prompt: Prompt, num_tokens: int, tokens_per_s: float) -> _Script:
    text = next((i.text for i in reversed(prompt.items) if isinstance(i, MessageItem) and i.role == "user"), "")
    last = prompt.items[-1] if prompt.items else None
    asked = dict(_directives(text))
    if "overloaded" in asked:
        raise EngineOverloaded("the script asked for a refusal")
    chunks: list[Chunk] = []
    if isinstance(last, FunctionCallOutputItem):
        chunks = _pieces(f"The tool answered: {last.output}")
    elif calls := _calls(prompt, text, is_asked=isinstance(last, MessageItem)):
        chunks = [*(_pieces(asked["echo"]) if "echo" in asked else ()), *calls]
    elif "echo" in asked:
        chunks = _pieces(asked["echo"])
    elif "empty" not in asked:
        chunks = _sentences(text, int(_number(asked.get("tokens"), num_tokens)))
    finish: FinishReason = "tool_calls" if any(chunk.tool_calls for chunk in chunks) else "stop"
    fail_after = int(_number(asked["fail"], 0)) if "fail" in asked else None
    if prompt.max_output_tokens is not None and len(chunks) > prompt.max_output_tokens:
        chunks, finish = chunks[: prompt.max_output_tokens], "length"
    num_chunks = len(chunks)
    num_spoken, chunks = _after(chunks if fail_after is None else chunks[:fail_after], prompt.spoken)
    if fail_after is None:
        last_chunk = chunks[-1] if chunks else Chunk()
        chunks = [*chunks[:-1], msgspec.structs.replace(last_chunk, finish_reason=finish)]
    pace = _number(asked.get("pace"), 4.0 if "slow" in asked else tokens_per_s)
    wait_s = 1e6 if "hang" in asked else 0.0 if prompt.spoken else _number(asked.get("wait"), 0.0)
    return _Script(chunks, num_chunks, num_spoken, pace, wait_s, fail_after is not None, "too long" in asked)


def _directives(text: str) -> Iterator[tuple[str, str]]:
    """Name and argument of each `[name argument]`; brackets inside the argument are balanced."""
    end = 0
    for match in _DIRECTIVE.finditer(text):
        if match.start() < end:  # inside another's argument
            continue
        depth, end = 1, match.end()
        while end < len(text) and depth:
            depth += {"[": 1, "]": -1}.get(text[end], 0)
            end += 1
        yield match[1].lower(), text[match.end() : end - (depth == 0)].strip()


def _calls(prompt: Prompt, text: str, *, is_asked: bool) -> list[Chunk]:
    """Pieces of the tool calls that the user's text, or the tool choice, asks for; those of tools that were not offered are said."""
    if not (offered := offered_names(prompt)):
        return []
    calls = [argument.partition(" ") for name, argument in _directives(text) if name == "call" and is_asked]
    named = [(name, arguments.strip() or "{}") for name, _, arguments in calls]
    if not named and prompt.tool_choice != "auto":
        tool = next(tool for tool in prompt.tools if tool.name in offered)
        named = [(tool.name, _example(tool))]
    chunks: list[Chunk] = []
    for index, (name, arguments) in enumerate(named):
        if name not in offered:
            chunks += _pieces(f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>')
            continue
        chunks.append(Chunk(num_tokens=1, tool_calls=(ToolCallDelta(index, name),)))
        for start in range(0, len(arguments), 8):
            piece = ToolCallDelta(index, arguments=arguments[start : start + 8])
            chunks.append(Chunk(num_tokens=1, tool_calls=(piece,)))
    return chunks


class _Property(Struct):
    type: str = "string"
    enum: list[str] = []


class _Schema(Struct):
    properties: dict[str, _Property] = {}
    required: list[str] = []


def _example(tool: FunctionTool) -> str:
    """Arguments that a validating client accepts: every required property, with a value of its type."""
    values = {"string": "text", "integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}}
    try:
        schema = msgspec.json.decode(tool.parameters, type=_Schema)
    except msgspec.MsgspecError:
        return "{}"
    wanted = {name: schema.properties.get(name, _Property()) for name in schema.required}
    return json.dumps({name: value.enum[0] if value.enum else values.get(value.type) for name, value in wanted.items()})


def _pieces(text: str) -> list[Chunk]:
    return [Chunk(text=piece, num_tokens=1) for piece in _PIECE.findall(text)]


def _sentences(text: str, num_tokens: int) -> list[Chunk]:
    """So many words in sentences; the same text always gets the same ones."""
    word = zlib.crc32(text.encode(errors="surrogatepass"))
    chunks: list[Chunk] = []
    for number in range(num_tokens):
        place = number % _WORDS_A_SENTENCE
        is_last = place == _WORDS_A_SENTENCE - 1 or number == num_tokens - 1
        words = _LAST if is_last else _PLAIN if place else _FIRST
        chunks.append(words[(word + number) % len(words)])
    if chunks:
        chunks[0] = msgspec.structs.replace(chunks[0], text=chunks[0].text.lstrip())
    return chunks


def _after(chunks: Sequence[Chunk], spoken: str) -> tuple[int, list[Chunk]]:
    """How many chunks were spoken to their end, and what is left of the others."""
    for number, chunk in enumerate(chunks):
        if not spoken:
            return number, list(chunks[number:])
        if len(chunk.text) > len(spoken):
            rest = msgspec.structs.replace(chunk, text=chunk.text[len(spoken) :])
            return number, [rest, *chunks[number + 1 :]]
        spoken = spoken[len(chunk.text) :]
    return len(chunks), []


def _number(text: str | None, default: float) -> float:
    match = re.search(r"\d+(\.\d+)?", text or "")
    return float(match[0]) if match else default


def _num_words(item: Item) -> int:
    if isinstance(item, MessageItem):
        return len(item.text.split())
    return len((item.arguments if isinstance(item, FunctionCallItem) else item.output).split())
