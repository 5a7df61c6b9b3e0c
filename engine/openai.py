"""Any endpoint that speaks OpenAI's streaming chat completions: `vllm serve`, vLLM's router, a cloud. No model here, only HTTP.

Source: OpenAI's API reference, "Chat completions / streaming"; vLLM's additions are used only where the endpoint says it is vLLM.
"""

import asyncio
import re
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import httpx
import msgspec
import structlog
from msgspec import Struct

from engine.base import Capacity, EngineError, EngineOverloaded, EngineUnavailable, PromptTooLong
from engine.prompt import is_open, reserve_tokens, turns_of, without_turns
from sessions.generation import Chunk, FinishReason, FunctionChoice, Prompt, RetentionRatio, ToolCallDelta, Usage
from sessions.items import FunctionCallItem, FunctionCallOutputItem, Item, MessageItem

log = structlog.get_logger()
_T = TypeVar("_T")

_MAX_REMEMBERED_SESSIONS = 10_000
_MAX_LINE_BYTES = 4 << 20
_RETRIABLE = frozenset({429, 500, 502, 503, 504})
_OVERFLOW = re.compile(
    r"context.{0,10}length|context_length_exceeded|too many tokens|prompt is too long", re.IGNORECASE
)
_LIMIT = re.compile(r"context length (?:is|of) (\d+)")
_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


class OpenAIEngine:
    """Streams answers from elsewhere. Starts although the endpoint is away: `failure` says so until it is back.

    `session_header` carries the session's id, so that a router sends all of its turns to one replica and its prefix cache:
    vLLM's router reads `X-Session-ID` first; production-stack's is set by its `--session-key`. `extra_body` joins every request.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        model: str,
        model_name: str | None = None,
        *,
        connect_timeout_s: float = 5.0,
        first_token_timeout_s: float = 60.0,
        idle_timeout_s: float = 30.0,
        probe_interval_s: float = 5.0,
        max_retries: int = 2,
        max_context_tokens: int = 0,
        session_header: str | None = "x-session-id",
        extra_body: Mapping[str, object] | None = None,
    ) -> None:
        self._base_url = base_url.rstrip("/") + "/"
        self._api_key = api_key
        self._model = model
        self._model_name = model_name or model
        self._connect_timeout_s = connect_timeout_s
        self._first_token_timeout_s = first_token_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._probe_interval_s = probe_interval_s
        self._max_retries = max_retries
        self._max_context_tokens = max_context_tokens
        self._session_header = session_header
        self._extra_body = dict(extra_body or {})
        self._is_vllm = False
        self._tokens_per_char = 0.3
        self._failure: str | None = "the endpoint was not asked yet"
        self._streams: dict[str, _Stream] = {}
        self._num_dropped: OrderedDict[str, int] = OrderedDict()  # turns dropped by session, so that it is learned once
        self._http: httpx.AsyncClient | None = None
        self._prober: asyncio.Task[None] | None = None

    @property
    def model_name(self) -> str:
        return self._model_name

    async def __aenter__(self) -> Self:
        headers = {"accept-encoding": "identity", "content-type": "application/json"}
        if self._api_key:
            headers["authorization"] = f"Bearer {self._api_key}"
        self._http = httpx.AsyncClient(
            base_url=self._base_url,
            headers=headers,
            # Reads are bounded here by `_read`, which also ends them on an abort.
            timeout=httpx.Timeout(None, connect=self._connect_timeout_s, write=self._idle_timeout_s),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=256, keepalive_expiry=30.0),
        )
        await self._probe()
        self._prober = asyncio.create_task(self._keep_probing(), name="openai-prober")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for response_id in tuple(self._streams):
            await self.abort(response_id)
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.wait([self._prober])
        http, self._http, self._failure = self._http, None, "the engine is closed"
        if http is not None:
            await http.aclose()

    async def generate(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        if self._http is None:
            raise EngineUnavailable("the engine is closed")
        stream = self._streams[prompt.response_id] = _Stream()
        try:
            async with aclosing(self._answer(self._http, prompt, stream)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except _Aborted:
            return
        except httpx.TransportError as error:
            raise self._lost(f"lost the endpoint: {type(error).__name__} {error}") from error
        finally:
            if self._streams.get(prompt.response_id) is stream:
                del self._streams[prompt.response_id]
            if stream.response is not None:
                # Closing the connection is what tells the other side to stop.
                await asyncio.shield(stream.response.aclose())

    async def abort(self, response_id: str) -> None:
        if (stream := self._streams.pop(response_id, None)) is not None:
            stream.is_aborted = True
            if stream.timeout is not None:
                stream.timeout.reschedule(asyncio.get_running_loop().time())

    def capacity(self) -> Capacity:
        return Capacity(len(self._streams), 0, 0, self._max_context_tokens)

    def failure(self) -> str | None:
        return self._failure

    async def _answer(self, http: httpx.AsyncClient, prompt: Prompt, stream: "_Stream") -> AsyncGenerator[Chunk, None]:
        lines = await self._open(http, prompt, stream)
        num_tokens, usage, finish = 0, None, None
        async for line in lines:
            event = _decode(line)
            if event.error is not None:
                raise EngineUnavailable(f"the endpoint failed: {event.error.message}")
            if event.usage is not None:
                usage = event.usage
            if not event.choices:
                continue
            choice = event.choices[0]
            finish = choice.finish_reason or finish
            text, calls = choice.delta.content or "", choice.delta.tool_calls
            if text or calls:
                num_tokens += 1
                yield Chunk(text, 1, tuple(call.delta() for call in calls) if calls else ())
        if finish is None:
            raise self._lost("the endpoint ended the answer without a reason")
        if usage is None:
            yield Chunk("", 0, (), Usage(0, num_tokens), _FINISH.get(finish, "stop"))
            return
        if stream.num_chars and usage.prompt_tokens:
            self._tokens_per_char += 0.1 * (usage.prompt_tokens / stream.num_chars - self._tokens_per_char)
        # The endpoint may put several tokens in one event: the last chunk makes the sum right.
        num_held = max(0, usage.completion_tokens - num_tokens)
        yield Chunk("", num_held, (), usage.usage(), _FINISH.get(finish, "stop"))

    async def _open(self, http: httpx.AsyncClient, prompt: Prompt, stream: "_Stream") -> AsyncIterator[bytes]:
        """Send the request, with less of the history and again as needed, until an answer begins; the lines of its events."""
        turns = turns_of(prompt.items)
        num_dropped = min(self._num_dropped.get(prompt.session_id, 0), len(turns) - 1)
        if prompt.truncation == "disabled":
            num_dropped = 0
        num_trims = 0
        while True:
            response = await self._send(http, prompt, without_turns(turns, num_dropped), stream)
            if response.status_code == 200:
                if num_dropped:
                    self._remember(prompt.session_id, num_dropped)
                return _Lines(response.aiter_raw(), stream, self._first_token_timeout_s, self._idle_timeout_s)
            error = _error(await self._read(response.aread(), stream))
            if response.status_code not in (400, 413, 422) or not _OVERFLOW.search(f"{error.code} {error.message}"):
                self._refuse(response.status_code, error)
            limit = self._max_context_tokens or int(match[1] if (match := _LIMIT.search(error.message)) else 0)
            num_tokens = max(round(stream.num_chars * self._tokens_per_char), limit + 1)
            num_trims += 1
            if prompt.truncation == "disabled" or num_dropped >= len(turns) - 1:
                raise PromptTooLong(num_tokens, limit)
            # The counts are a guess, so that each further attempt takes more.
            share = (1 - reserve_tokens(prompt.max_output_tokens, limit) / limit if limit else 0.7) * 0.8**num_trims
            num_dropped += _num_to_drop(turns[num_dropped:], prompt, share * limit / num_tokens)

    async def _send(
        self, http: httpx.AsyncClient, prompt: Prompt, items: Sequence[Item], stream: "_Stream"
    ) -> httpx.Response:
        stream.num_chars = len(prompt.instructions) + sum(_num_chars(item) for item in items)
        headers = {self._session_header: prompt.session_id} if self._session_header else {}
        content = msgspec.json.encode(self._body(prompt, items))
        for attempt in range(self._max_retries + 1):
            request = http.build_request("POST", "chat/completions", content=content, headers=headers)
            if stream.response is not None:
                await stream.response.aclose()
                stream.response = None
            try:
                response = await self._read(http.send(request, stream=True), stream)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.RemoteProtocolError) as error:
                if attempt == self._max_retries:
                    raise self._lost(f"cannot reach {self._base_url}: {error}") from error
                wait_s = 0.1 * 2**attempt
            else:
                stream.response = response
                if response.status_code not in _RETRIABLE or attempt == self._max_retries:
                    return response
                wait_s = min(_retry_after_s(response) or 0.1 * 2**attempt, 5.0)
            await self._read(asyncio.sleep(wait_s), stream)
        raise AssertionError("the last attempt returns or raises")

    def _body(self, prompt: Prompt, items: Sequence[Item]) -> dict[str, object]:
        body: dict[str, object] = {
            "model": self._model,
            "messages": _messages(prompt.instructions, items),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if prompt.max_output_tokens is not None:
            # More than the context could hold would be refused however short the history is.
            most = self._max_context_tokens // 2 or prompt.max_output_tokens
            body["max_completion_tokens"] = min(prompt.max_output_tokens, most)
        if prompt.tools and prompt.tool_choice != "none":
            body["tools"] = [
                {
                    "type": "function",
                    "function": {"name": t.name, "description": t.description or "", "parameters": t.parameters},
                }
                for t in prompt.tools
            ]
            body["tool_choice"] = prompt.tool_choice
            if isinstance(prompt.tool_choice, FunctionChoice):
                body["tool_choice"] = {"type": "function", "function": {"name": prompt.tool_choice.name}}
        if self._is_vllm:
            body["chat_template_kwargs"] = {"enable_thinking": False}  # an avatar would speak its thoughts
            if items and isinstance(last := items[-1], MessageItem) and is_open(last):
                body.update(continue_final_message=True, add_generation_prompt=False)
        return body | self._extra_body

    async def _read(self, awaitable: Awaitable[_T], stream: "_Stream") -> _T:
        """Await something of the answer's beginning: not for ever, and not after an abort."""
        return await stream.read(awaitable, self._first_token_timeout_s)

    def _refuse(self, status: int, error: "_Error") -> NoReturn:
        text = f"the endpoint answered {status}: {error.message}"
        if status == 429:
            raise EngineOverloaded(text)
        if status in (401, 403, 404):
            self._failure = text
            raise EngineError(text)
        if status >= 500:
            raise self._lost(text)
        raise EngineError(text)

    def _lost(self, reason: str) -> EngineUnavailable:
        """Red until the next probe finds the endpoint well."""
        self._failure = reason
        return EngineUnavailable(reason)

    def _remember(self, session_id: str, num_dropped: int) -> None:
        self._num_dropped[session_id] = num_dropped
        self._num_dropped.move_to_end(session_id)
        if len(self._num_dropped) > _MAX_REMEMBERED_SESSIONS:
            self._num_dropped.popitem(last=False)

    async def _keep_probing(self) -> None:
        while True:
            await asyncio.sleep(self._probe_interval_s)
            await self._probe()

    async def _probe(self) -> None:
        assert self._http is not None
        before = self._failure
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                response = await self._http.get("models")
            if response.status_code != 200:
                self._failure = f"{self._base_url} answered {response.status_code} when asked for its models"
            else:
                self._learn(msgspec.json.decode(response.content, type=_Models).data)
        except (httpx.HTTPError, TimeoutError, msgspec.MsgspecError) as error:
            self._failure = f"cannot reach {self._base_url}: {type(error).__name__} {error}"
        if self._failure != before:
            log.info("engine_endpoint", failure=self._failure)

    def _learn(self, models: Sequence["_Model"]) -> None:
        ours = next((model for model in models if model.id == self._model), None)
        if ours is None:
            self._failure = f"{self._base_url} has no model {self._model!r}"
            return
        self._is_vllm = ours.owned_by == "vllm"
        self._max_context_tokens = ours.max_model_len or self._max_context_tokens
        self._failure = None


class _Aborted(Exception):
    """The answer was aborted while it was waited for."""


class _Stream:
    """One running request, and the means to stop its wait from another task."""

    __slots__ = ("is_aborted", "num_chars", "response", "timeout")

    def __init__(self) -> None:
        self.is_aborted = False
        self.num_chars = 0
        self.response: httpx.Response | None = None
        self.timeout: asyncio.Timeout | None = None

    async def read(self, awaitable: Awaitable[_T], timeout_s: float) -> _T:
        if self.is_aborted:
            if asyncio.iscoroutine(awaitable):
                awaitable.close()
            raise _Aborted
        try:
            async with asyncio.timeout(timeout_s) as self.timeout:
                return await awaitable
        except TimeoutError:
            if self.is_aborted:
                raise _Aborted from None
            raise EngineUnavailable(f"nothing came from the endpoint for {timeout_s:g} s") from None
        finally:
            self.timeout = None


class _Lines:
    """The payloads of a response's server-sent events, up to `[DONE]`."""

    def __init__(
        self, pieces: AsyncIterator[bytes], stream: _Stream, first_timeout_s: float, idle_timeout_s: float
    ) -> None:
        self._pieces = pieces
        self._stream = stream
        self._timeout_s = first_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._ready: list[bytes] = []  # the newest first
        self._rest = b""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while True:
            while self._ready:
                line = self._ready.pop()
                if line.startswith(b"data:"):
                    payload = line[5:].strip()
                    if payload == b"[DONE]":
                        # The body's end is still to be read, or the connection could not be used again.
                        await self._stream.read(anext(self._pieces, b""), self._idle_timeout_s)
                        raise StopAsyncIteration
                    return payload
            if self._stream.is_aborted:
                raise _Aborted
            piece = await self._stream.read(anext(self._pieces, b""), self._timeout_s)
            if not piece:
                raise StopAsyncIteration
            self._timeout_s = self._idle_timeout_s
            lines = (self._rest + piece).split(b"\n")
            self._rest = lines.pop()
            if len(self._rest) > _MAX_LINE_BYTES:
                raise EngineUnavailable("the endpoint sent a line without end")
            self._ready = lines[::-1]


class _Function(Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _Call(Struct, gc=False):
    index: int = 0
    function: _Function | None = None

    def delta(self) -> ToolCallDelta:
        function = self.function or _Function()
        return ToolCallDelta(self.index, function.name or None, function.arguments or "")


class _Delta(Struct, gc=False):
    content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(Struct, gc=False):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Details(Struct, gc=False):
    cached_tokens: int | None = None


class _Usage(Struct, gc=False):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None

    def usage(self) -> Usage:
        details = self.prompt_tokens_details or _Details()
        return Usage(self.prompt_tokens, self.completion_tokens, details.cached_tokens or 0)


class _Error(Struct, gc=False):
    message: str = ""
    code: str | int | None = None


class _Event(Struct, gc=False):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


class _Refusal(Struct):
    """An error's body: OpenAI nests it in `error`, older vLLM does not."""

    error: _Error | None = None
    message: str = ""
    code: str | int | None = None


class _Model(Struct):
    id: str
    owned_by: str = ""
    max_model_len: int | None = None


class _Models(Struct):
    data: list[_Model]


_events = msgspec.json.Decoder(_Event)


def _decode(line: bytes) -> _Event:
    try:
        return _events.decode(line)
    except msgspec.MsgspecError as error:
        raise EngineUnavailable(f"the endpoint sent what is no event: {error}") from error


def _error(body: bytes) -> _Error:
    try:
        refusal = msgspec.json.decode(body, type=_Refusal)
    except msgspec.MsgspecError:
        return _Error(body[:200].decode(errors="replace"))
    return refusal.error or _Error(refusal.message, refusal.code)


def _retry_after_s(response: httpx.Response) -> float | None:
    try:
        return float(response.headers["retry-after"])
    except (KeyError, ValueError):  # absent, or a date
        return None


def _num_to_drop(turns: Sequence[Sequence[Item]], prompt: Prompt, keep: float) -> int:
    """How many of these turns must go to keep this share of the prompt's text: at least one, never the last."""
    if isinstance(prompt.truncation, RetentionRatio):
        keep *= prompt.truncation.retention_ratio
    sizes = [sum(_num_chars(item) for item in turn) for turn in turns]
    excess, num_turns = (len(prompt.instructions) + sum(sizes)) * (1 - keep), 0
    while num_turns < len(turns) - 1 and (num_turns == 0 or excess > 0):
        excess -= sizes[num_turns]
        num_turns += 1
    return num_turns


def _num_chars(item: Item) -> int:
    if isinstance(item, MessageItem):
        return len(item.text)
    return len(item.arguments if isinstance(item, FunctionCallItem) else item.output)


def _messages(instructions: str, items: Sequence[Item]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    for item in items:
        if isinstance(item, MessageItem):
            messages.append({"role": item.role, "content": item.text})
        elif isinstance(item, FunctionCallOutputItem):
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": item.output})
        else:
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            messages[-1].setdefault("tool_calls", []).append(call)
    return messages or [{"role": "user", "content": ""}]
