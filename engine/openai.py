"""Any endpoint that speaks OpenAI's streaming chat completions: `vllm serve`, vLLM's router, a cloud. No model here, only HTTP.

Source: OpenAI's API reference, "Chat completions / streaming"; vLLM's additions are used only where the endpoint says it is vLLM.
"""

import asyncio
import re
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import NoReturn, Self, TypeVar

import httpx
import msgspec
import structlog
from msgspec import Raw

from engine.base import Capacity, EngineError, EngineOverloaded, EngineUnavailable, PromptTooLong, epoch_ms
from engine.openai_wire import FINISH, Error, Model, Models, Times, messages_of, read_error, read_event, retry_after_s
from engine.prompt import reserve_tokens, turns_of, without_turns
from engine.tool_calls import OfferedCalls
from sessions.generation import Chunk, FunctionChoice, Origin, Prompt, RetentionRatio, Usage
from sessions.items import FunctionCallItem, Item, MessageItem

log = structlog.get_logger()
_encoder = msgspec.json.Encoder()
_T = TypeVar("_T")

_MAX_REMEMBERED_SESSIONS = 10_000
_MAX_LINE_BYTES = 4 << 20
_NOT_SAMPLING = frozenset({"model", "messages", "tools", "stream", "stream_options"})
_RETRIABLE = frozenset({429, 500, 502, 503, 504})
_OVERFLOW = re.compile(
    r"context.{0,10}length|context_length_exceeded|too many tokens|prompt is too long", re.IGNORECASE
)
_LIMIT = re.compile(r"context length (?:is|of) (\d+)")


class OpenAIEngine:
    """Streams answers from elsewhere. Starts although the endpoint is away: `failure` says so until it is back.

    `session_header` carries the session's id, so that a router sends all of its turns to one replica and its prefix cache:
    vLLM's router reads `X-Session-ID` first; production-stack's is set by its `--session-key`. `extra_body` joins every request.

    The endpoint finds the calls in what its model writes. One of a tool that was not offered is left out, with a warning: the answer ends
    as it would have, with the rest of it, and fails when there is no rest.

    Only vLLM goes on with an answer: others would begin it anew, or refuse. An endpoint that does not tell its usage cannot tell how
    many tokens were spoken either; the limit then holds for what it adds.
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
        if prompt.spoken:
            stream.num_spoken = await self._count_spoken(http, prompt, stream)
        limit = self._limit(prompt)
        is_full = limit is not None and stream.num_spoken >= limit
        lines = await self._open(http, prompt, stream)
        offered = OfferedCalls(prompt)
        num_tokens, usage, finish, times = 0, None, None, None
        origin: Origin | None = None
        last_token_ms: int | None = None
        async for line in lines:
            event = read_event(line)
            if event.error is not None:
                raise EngineUnavailable(f"the endpoint failed: {event.error.message}")
            if event.usage is not None:
                usage, times = event.usage, event.metrics
            if not event.choices:
                continue
            choice = event.choices[0]
            if choice.finish_reason:
                finish, last_token_ms = choice.finish_reason, epoch_ms()
            if is_full:  # one token was asked for, so that the endpoint tells the usage
                continue
            text, found = choice.delta.content or "", choice.delta.tool_calls
            calls = offered.only(call.delta() for call in found) if found else ()
            if text or calls:
                num_tokens += 1
                told = None
                if origin is None:
                    told = origin = _origin(stream.body, epoch_ms())
                    if prompt.spoken:
                        # Text that only lengthens a message is passed on without a look at what comes with it.
                        yield Chunk(origin=told)
                        told = None
                yield Chunk(text, 1, calls, origin=told)
        if finish is None:
            raise self._lost("the endpoint ended the answer without a reason")
        offered.end(is_empty=not (num_tokens or prompt.spoken))
        origin = _ended(origin or _origin(stream.body, None), times, stream.posted_ms, last_token_ms)
        if usage is None:
            yield Chunk("", 0, (), Usage(0, num_tokens), FINISH.get(finish, "stop"), origin)
            return
        if is_full:
            finish, usage.completion_tokens = "length", 0
        whole = usage.usage(stream.num_spoken)
        if stream.num_chars and whole.input_tokens:
            self._tokens_per_char += 0.1 * (whole.input_tokens / stream.num_chars - self._tokens_per_char)
        # The endpoint may put several tokens in one event: the last chunk makes the sum right.
        num_held = max(0, usage.completion_tokens - num_tokens)
        yield Chunk("", num_held, (), whole, FINISH.get(finish, "stop"), origin)

    async def _open(self, http: httpx.AsyncClient, prompt: Prompt, stream: "_Stream") -> AsyncIterator[bytes]:
        """Send the request, with less of the history and again as needed, until an answer begins; the lines of its events."""
        turns = turns_of(prompt.items)
        num_dropped = min(self._num_dropped.get(prompt.session_id, 0), len(turns) - 1)
        if prompt.truncation == "disabled":
            num_dropped = 0
        num_trims = 0
        while True:
            items = without_turns(turns, num_dropped)
            stream.num_chars = len(prompt.instructions) + sum(_num_chars(item) for item in items)
            stream.body = self._body(prompt, items, stream.num_spoken)
            stream.posted_ms = epoch_ms()
            response = await self._send(http, prompt, stream.body, stream)
            if response.status_code == 200:
                if num_dropped:
                    self._remember(prompt.session_id, num_dropped)
                return _Lines(response.aiter_raw(), stream, self._first_token_timeout_s, self._idle_timeout_s)
            error = read_error(await self._read(response.aread(), stream))
            if response.status_code not in (400, 413, 422) or not _OVERFLOW.search(f"{error.code} {error.message}"):
                self._refuse(response.status_code, error, prompt)
            limit = self._max_context_tokens or int(match[1] if (match := _LIMIT.search(error.message)) else 0)
            num_tokens = max(round(stream.num_chars * self._tokens_per_char), limit + 1)
            num_trims += 1
            if prompt.truncation == "disabled" or num_dropped >= len(turns) - 1:
                raise PromptTooLong(num_tokens, limit)
            # Where nobody tells the limit, the prompt is taken to be just over it.
            fitting = (limit - reserve_tokens(prompt.max_output_tokens, limit)) / num_tokens if limit else 0.7
            # The counts are a guess, so that each further attempt takes more.
            num_dropped += _num_to_drop(turns[num_dropped:], prompt, fitting * 0.8**num_trims)

    async def _count_spoken(self, http: httpx.AsyncClient, prompt: Prompt, stream: "_Stream") -> int:
        """Tokens of `spoken` as the endpoint spells it: what they add to an empty conversation."""
        if not self._is_vllm:
            if self._failure is not None:  # it may yet turn out to be vLLM
                raise EngineUnavailable(self._failure)
            raise EngineError(f"the answer cannot be continued: {self._base_url} is not vLLM")
        counts = []
        for spoken in ("", prompt.spoken):
            bare = Prompt(prompt.response_id, prompt.session_id, "", (), spoken=spoken)
            body = self._body(bare, (), 0) | {"stream": False, "max_completion_tokens": 1}
            del body["stream_options"]
            response = await self._send(http, prompt, body, stream)
            answer = await self._read(response.aread(), stream)
            if response.status_code != 200:
                self._refuse(response.status_code, read_error(answer), prompt)
            usage = read_event(answer).usage
            counts.append(usage.prompt_tokens if usage is not None else 0)
        return max(0, counts[1] - counts[0])

    async def _send(
        self, http: httpx.AsyncClient, prompt: Prompt, body: Mapping[str, object], stream: "_Stream"
    ) -> httpx.Response:
        headers = {self._session_header: prompt.session_id} if self._session_header else {}
        content = _encoder.encode(body)
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
                wait_s = min(retry_after_s(response) or 0.1 * 2**attempt, 5.0)
            await self._read(asyncio.sleep(wait_s), stream)
        raise AssertionError("the last attempt returns or raises")

    def _limit(self, prompt: Prompt) -> int | None:
        """Tokens that the whole answer may have."""
        if prompt.max_output_tokens is None:
            return None
        # More than the context could hold would be refused however short the history is.
        return min(prompt.max_output_tokens, self._max_context_tokens // 2 or prompt.max_output_tokens)

    def _body(self, prompt: Prompt, items: Sequence[Item], num_spoken: int) -> dict[str, object]:
        body: dict[str, object] = {
            "model": self._model,
            "messages": Raw(_encoder.encode(messages_of(prompt.instructions, items, prompt.spoken))),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if (limit := self._limit(prompt)) is not None:
            body["max_completion_tokens"] = max(1, limit - num_spoken)
        if prompt.tools and prompt.tool_choice != "none":
            tools = [
                {
                    "type": "function",
                    "function": {"name": t.name, "description": t.description or "", "parameters": t.parameters},
                }
                for t in prompt.tools
            ]
            body["tools"] = Raw(_encoder.encode(tools))
            body["tool_choice"] = prompt.tool_choice
            if isinstance(prompt.tool_choice, FunctionChoice):
                body["tool_choice"] = {"type": "function", "function": {"name": prompt.tool_choice.name}}
        if self._is_vllm:
            body["chat_template_kwargs"] = {"enable_thinking": False}  # an avatar would speak its thoughts
        if prompt.spoken:
            body.update(continue_final_message=True, add_generation_prompt=False)
        return body | self._extra_body

    async def _read(self, awaitable: Awaitable[_T], stream: "_Stream") -> _T:
        """Await something of the answer's beginning: not for ever, and not after an abort."""
        return await stream.read(awaitable, self._first_token_timeout_s)

    def _refuse(self, status: int, error: Error, prompt: Prompt) -> NoReturn:
        text = f"the endpoint answered {status}: {error.message}"
        if status == 429:
            raise EngineOverloaded(text)
        if status in (401, 403, 404):
            self._failure = text
            raise EngineError(text)
        if status >= 500:
            raise self._lost(text)
        raise EngineError(f"the answer cannot be continued: {text}" if prompt.spoken else text)

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
                self._learn(msgspec.json.decode(response.content, type=Models).data)
        except (httpx.HTTPError, TimeoutError, msgspec.MsgspecError) as error:
            self._failure = f"cannot reach {self._base_url}: {type(error).__name__} {error}"
        if self._failure != before:
            log.info("engine_endpoint", failure=self._failure)

    def _learn(self, models: Sequence[Model]) -> None:
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

    __slots__ = ("body", "is_aborted", "num_chars", "num_spoken", "posted_ms", "response", "timeout")

    def __init__(self) -> None:
        self.body: dict[str, object] = {}
        self.posted_ms = 0
        self.is_aborted = False
        self.num_chars = 0
        self.num_spoken = 0
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


def _origin(body: Mapping[str, object], first_token_ms: int | None) -> Origin:
    """How an answer came to be whose first token arrived then. What the endpoint does by default, and when it began, it does not say."""
    prompt = {name: body[name] for name in ("messages", "tools") if name in body}
    used = {name: value for name, value in body.items() if name not in _NOT_SAMPLING}
    return Origin(
        prompt=_encoder.encode(prompt).decode(),
        prompt_format="messages",
        sampling=Raw(_encoder.encode(used)),
        first_token_ms=first_token_ms,
    )


def _ended(origin: Origin, times: Times | None, posted_ms: int, last_token_ms: int | None) -> Origin:
    """The same at its end, when vLLM may say how long it took to the first token once it had begun: the way here counts as waiting."""
    taken_ms, first_ms = None, origin.first_token_ms
    if times is not None and times.time_to_first_token_ms is not None and first_ms is not None:
        taken_ms = min(max(posted_ms, first_ms - round(times.time_to_first_token_ms)), first_ms)
    return msgspec.structs.replace(origin, taken_ms=taken_ms, last_token_ms=last_token_ms if first_ms else None)


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
