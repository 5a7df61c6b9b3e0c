"""vLLM in this process (`AsyncLLM`, its engine core in a child process). The only module that imports vllm, and only once it is opened.

Every token passes here, so that what is added to vLLM's own output is one `Chunk`; a parser joins only when the prompt has tools.
"""

import asyncio
import inspect
import itertools
import os
import threading
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec
import structlog
from msgspec import Struct

from engine.base import Capacity, EngineError, EngineOverloaded, EngineUnavailable, ModelNotLoadable, epoch_ms
from engine.prompt import EncodedPrompt, PromptEncoder
from engine.tool_calls import (
    ForcedCallParser,
    HermesParser,
    OfferedCalls,
    ToolCallParser,
    forced_call_schema,
    offered_names,
)
from engine.vllm_times import CoreClock, note_times
from sessions.generation import Chunk, FinishReason, Origin, Prompt, ToolCallDelta

log = structlog.get_logger()
_encoder = msgspec.json.Encoder(enc_hook=str)

_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    # A fork would inherit the server's sockets and, off the main thread, its locks.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
_LIVENESS_S = 0.25
_FIRST_BACKOFF_S = 1.0
_ALWAYS_TOLD = frozenset({"temperature", "top_p", "top_k", "max_tokens", "stop", "seed"})
_NEVER_TOLD = frozenset({"output_kind", "detokenize", "structured_outputs"})
_MAX_BACKOFF_S = 60.0


class VllmEngine:
    """Streams a model's answers. When the engine core dies it is started again, until it is up or the engine is closed.

    `engine_args` go to vLLM's `AsyncEngineArgs` as they are. `tool_parser` is "hermes" or the name of any of vLLM's parsers.
    """

    def __init__(
        self,
        model: str,
        model_name: str | None = None,
        *,
        max_model_len: int | None = None,
        tool_parser: str = "hermes",
        engine_args: Mapping[str, object] | None = None,
    ) -> None:
        self._model = model
        self._model_name = model_name or os.path.basename(model.rstrip("/"))
        self._max_model_len = max_model_len
        self._tool_parser = tool_parser
        self._engine_args = dict(engine_args or {})
        self._attempts = itertools.count(1)
        self._requests: dict[str, str] = {}  # the request's id in vLLM by response id
        self._running: _Running | None = None
        self._failure = "the engine was not started"
        self._died = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._is_closed = False

    @property
    def model_name(self) -> str:
        return self._model_name

    async def __aenter__(self) -> Self:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            await asyncio.to_thread(_import_vllm)
            self._running = await asyncio.to_thread(self._start)
        except EngineError:
            raise
        except Exception as error:
            raise ModelNotLoadable(self._model, str(error) or type(error).__name__) from error
        self._keeper = asyncio.create_task(self._keep_up(), name="vllm-keeper")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        running, self._running, self._failure = self._running, None, "the engine is closed"
        if running is not None:
            await asyncio.to_thread(_shut_down, running.llm)

    async def generate(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        running = self._running
        if running is None or running.llm.errored:
            raise EngineUnavailable(self._failure if running is None else "the engine core died")
        clock = CoreClock()
        encoded = await running.encoder.encode_async(prompt)
        if encoded.num_left <= 0:
            yield Chunk(usage=encoded.usage(), finish_reason="length")
            return
        parser, params = self._parser(running, prompt, encoded)
        request_id = f"{prompt.response_id}.{next(self._attempts)}"
        self._requests[prompt.response_id] = request_id
        num_output, num_held, is_first, is_open = 0, 0, True, True
        spelled = list(encoded.spoken_ids)
        said = [prompt.spoken]
        stream = running.llm.generate(running.tokens_input(encoded.all_ids), params, request_id=request_id)
        try:
            async for out in stream:
                completion = out.outputs[0]
                text, token_ids = completion.text, completion.token_ids
                spelled.extend(token_ids)
                said.append(text)
                num_held += len(token_ids)
                calls: tuple[ToolCallDelta, ...] = ()
                if parser is not None:
                    text, calls = parser.feed(text, token_ids)
                if out.finished:  # no break: left to end by itself, the stream needs no closing
                    is_open = False
                elif text or calls:  # a token that ends within a character has no text of its own
                    num_output += num_held
                    usage = origin = None
                    if is_first:
                        usage = encoded.usage(num_output, out.num_cached_tokens or 0)
                        origin = first = _origin(running, encoded, params, clock, out.metrics)
                    yield Chunk(text, num_held, calls, usage, None, origin)
                    num_held, is_first = 0, False
            if is_open:
                raise EngineUnavailable("vLLM ended the answer without a reason")
            if completion.finish_reason == "abort":
                return
            if parser is not None:
                rest, more = parser.finish()
                text, calls = text + rest, calls + more
            finish = _finish_reason(completion.finish_reason, parser)
            if finish != "tool_calls":
                running.encoder.seed(encoded, "".join(said), spelled)
            usage = encoded.usage(num_output + num_held, out.num_cached_tokens or 0)
            origin = _origin(running, encoded, params, clock, out.metrics) if is_first else first
            yield Chunk(text, num_held, calls, usage, finish, _ended(origin, clock, out.metrics))
        except running.dead_error as error:
            is_open = False
            self._died.set()
            raise EngineUnavailable("the engine core died") from error
        except running.overflow_error as error:
            raise EngineOverloaded(str(error)) from error
        except running.request_error as error:
            raise EngineError(f"vLLM refused the request: {error}") from error
        except running.broken_error as error:
            raise EngineError(f"vLLM failed on the request: {error.__cause__ or error}") from error
        finally:
            if self._requests.get(prompt.response_id) == request_id:
                del self._requests[prompt.response_id]
            if is_open:
                # Closing the stream alone has left requests running (vLLM issue 57061).
                await running.llm.abort(request_id)
                await stream.aclose()

    async def abort(self, response_id: str) -> None:
        request_id = self._requests.pop(response_id, None)
        if request_id is not None and self._running is not None:
            await self._running.llm.abort(request_id)

    def capacity(self) -> Capacity:
        running = self._running
        if running is None:
            return Capacity(0, 0, 0, 0)
        num_requests = len(self._requests)
        return Capacity(
            running=min(num_requests, running.max_requests),
            waiting=max(0, num_requests - running.max_requests),
            max_requests=running.max_requests,
            max_context_tokens=running.encoder.max_context_tokens,
        )

    def failure(self) -> str | None:
        if self._running is None:
            return self._failure
        return "the engine core died; it is being started again" if self._running.llm.errored else None

    async def _keep_up(self) -> None:
        """Start the engine again whenever its core has died."""
        while True:
            try:
                async with asyncio.timeout(_LIVENESS_S):
                    await self._died.wait()
            except TimeoutError:
                if self._running is not None and not self._running.llm.errored:
                    continue
            self._died.clear()
            dead, self._running = self._running, None
            self._failure = "the engine core died; it is being started again"
            log.error("engine_died", model=self._model_name)
            if dead is not None:
                try:
                    await asyncio.to_thread(_shut_down, dead.llm)
                except Exception as error:  # what is left of the dead may not keep the next from being started
                    log.error("engine_not_shut_down", model=self._model_name, error=str(error))
            del dead
            await self._start_again()
            log.info("engine_started_again", model=self._model_name)

    async def _start_again(self) -> None:
        backoff_s = _FIRST_BACKOFF_S
        while self._running is None:
            try:
                self._running = await asyncio.to_thread(self._start)
            except Exception as error:  # anything may keep a model from loading, and none of it may end the keeper
                self._failure = f"the engine core died and cannot be started: {error}"
                log.error("engine_start_failed", model=self._model_name, error=str(error), retry_in_s=backoff_s)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)

    def _start(self) -> "_Running":
        """Load tokenizer and model; takes tens of seconds, so that it runs in a thread."""
        encoder = PromptEncoder.load(self._model, max_context_tokens=self._max_model_len or 0)
        from vllm.config import StructuredOutputsConfig
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        args: dict[str, object] = {
            "model": self._model,
            "max_model_len": self._max_model_len,
            "enable_prefix_caching": True,
            "disable_log_stats": False,  # for the core's times; see below
            # Unbounded whitespace between the parts of a demanded call is a trap that small models never leave.
            "structured_outputs_config": StructuredOutputsConfig(backend="xgrammar", disable_any_whitespace=True),
            **({"enforce_eager": True} if current_platform.is_cpu() else {}),
            **self._engine_args,
        }
        llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**args))
        if "disable_log_stats" not in self._engine_args:
            note_times(llm)
        if self._is_closed:  # closed while this thread was loading: nobody else will end the core
            _shut_down(llm)
            raise EngineUnavailable("the engine is closed")
        encoder.max_context_tokens = llm.model_config.max_model_len
        defaults = llm.model_config.get_diff_sampling_param()
        defaults.pop("max_tokens", None)
        if defaults.get("top_k") == 1:
            defaults["temperature"] = 0.0  # the same answer, by vLLM's cheaper way
        return _Running(
            llm=llm,
            encoder=encoder,
            max_requests=llm.vllm_config.scheduler_config.max_num_seqs,
            defaults={**defaults, "output_kind": RequestOutputKind.DELTA},
            sampling_params=SamplingParams,
            default_params=SamplingParams(),
            structured_outputs=StructuredOutputsParams,
            dead_error=EngineDeadError,
            broken_error=EngineGenerateError,
            **_differing_names(),
        )

    def _parser(self, running: "_Running", prompt: Prompt, encoded: EncodedPrompt) -> tuple[ToolCallParser | None, Any]:
        """What reads the answer's tool calls, if it may have any, and the sampling parameters that go with it."""
        settings = {**running.defaults, "max_tokens": encoded.num_left}
        if not (names := offered_names(prompt)):
            return None, running.sampling_params(**settings)
        if (schema := forced_call_schema(prompt)) is not None:
            return ForcedCallParser(names), running.sampling_params(
                **settings, structured_outputs=running.structured_outputs(json=schema)
            )
        parser: ToolCallParser = HermesParser(names)
        if self._tool_parser != "hermes":
            parser = _VllmParser(self._tool_parser, running.encoder.tokenizer, prompt)
        # Where the tags of calls are special tokens, leaving those out would leave out the calls.
        return parser, running.sampling_params(**settings, skip_special_tokens=False)


class _Running(Struct, frozen=True):
    """A started vLLM and those of its names that are used on the way of a token."""

    llm: Any
    encoder: PromptEncoder
    max_requests: int
    defaults: dict[str, object]
    sampling_params: Any
    default_params: Any
    structured_outputs: Any
    dead_error: type[Exception]
    broken_error: type[Exception]
    tokens_input: Any
    request_error: tuple[type[Exception], ...]
    overflow_error: tuple[type[Exception], ...]


class _VllmParser:
    """One of vLLM's own streaming tool parsers, of whose calls those of offered tools are passed on."""

    def __init__(self, name: str, tokenizer: Any, prompt: Prompt) -> None:
        manager, request_type = _tool_parsers()
        tools = [
            {
                "type": "function",
                "function": {
                    "name": t.name,
                    "description": t.description or "",
                    "parameters": msgspec.json.decode(t.parameters),
                },
            }
            for t in prompt.tools
        ]
        self._request = request_type(messages=[], model="", tools=tools)
        self._parser = manager.get_tool_parser(name)(tokenizer, self._request.tools)
        self._text = ""
        self._ids: list[int] = []
        self._last_index = 0
        self._offered = OfferedCalls(prompt)
        self._is_empty = not prompt.spoken
        self.num_calls = 0

    def feed(self, text: str, token_ids: Sequence[int]) -> tuple[str, tuple[ToolCallDelta, ...]]:
        before, ids_before = self._text, self._ids
        self._text, self._ids = before + text, [*ids_before, *token_ids]
        delta = self._parser.extract_tool_calls_streaming(
            before, self._text, text, ids_before, self._ids, list(token_ids), self._request
        )
        if delta is None:
            return "", ()
        found = [
            ToolCallDelta(call.index, call.function.name, call.function.arguments or "")
            for call in delta.tool_calls or ()
            if call.function is not None
        ]
        self._last_index = found[-1].index if found else self._last_index
        calls = self._offered.only(found)
        self.num_calls += sum(call.name is not None for call in calls)
        self._is_empty = self._is_empty and not (delta.content or calls)
        return delta.content or "", calls

    def finish(self) -> tuple[str, tuple[ToolCallDelta, ...]]:
        remaining = getattr(self._parser, "get_remaining_unstreamed_args", None)  # newer than vLLM 0.24
        rest = remaining() if remaining is not None and self.num_calls else ""
        self._offered.end(is_empty=self._is_empty)
        return "", self._offered.only([ToolCallDelta(self._last_index, arguments=rest)]) if rest else ()


def _import_vllm() -> None:
    """Import it in a call of its own: failed optional imports keep their tracebacks, and with them all that their callers held."""
    import vllm.engine.arg_utils
    import vllm.v1.engine.async_llm  # noqa: F401


def _shut_down(llm: Any) -> None:
    """End the core. It has nothing to save, and asked politely it takes vLLM's whole grace period of 5 s."""
    if "timeout" in inspect.signature(llm.shutdown).parameters:
        llm.shutdown(timeout=0.5)
    else:
        llm.shutdown()
    if (context := getattr(llm.engine_core.resources, "ctx", None)) is not None:
        # vLLM leaves its ZeroMQ context to the garbage collector. Its end waits for each of its sockets to be closed,
        # which nobody promises, so that it is not waited for without bound.
        end = threading.Thread(target=context.term, name="vllm-zmq-end", daemon=True)
        end.start()
        end.join(1.0)


def _origin(running: _Running, encoded: EncodedPrompt, params: Any, clock: CoreClock, metrics: Any) -> Origin:
    """How an answer came to be whose first token is here. Without vLLM's metrics only that moment is known."""
    used = {
        name: value
        for name in params.__struct_fields__
        if name[0] != "_" and name not in _NEVER_TOLD
        if (value := getattr(params, name)) != getattr(running.default_params, name) or name in _ALWAYS_TOLD
    }
    if params.structured_outputs is not None:
        used["structured_outputs"] = {
            name: value for name, value in vars(params.structured_outputs).items() if value and name[0] != "_"
        }
    taken_ms, first_ms = (
        (None, None) if metrics is None else (clock.at_ms(metrics.scheduled_ts), clock.at_ms(metrics.first_token_ts))
    )
    return Origin(
        prompt=encoded.text,
        sampling=msgspec.Raw(_encoder.encode(used)),
        taken_ms=taken_ms,
        first_token_ms=epoch_ms() if first_ms is None else first_ms,
    )


def _ended(origin: Origin, clock: CoreClock, metrics: Any) -> Origin:
    last_ms = None if metrics is None else clock.at_ms(metrics.last_token_ts)
    return msgspec.structs.replace(origin, last_token_ms=epoch_ms() if last_ms is None else last_ms)


def _finish_reason(reason: str | None, parser: ToolCallParser | None) -> FinishReason:
    if reason == "length":
        return "length"
    if reason != "stop":
        raise EngineUnavailable(f"vLLM ended the answer: {reason}")
    return "tool_calls" if parser is not None and parser.num_calls else "stop"


def _differing_names() -> dict[str, Any]:
    """Names that moved between vLLM 0.24 and 0.32."""
    try:
        from vllm.inputs import tokens_input
    except ImportError:

        def tokens_input(prompt_token_ids: list[int]) -> dict[str, object]:
            return {"prompt_token_ids": prompt_token_ids}

    try:
        from vllm.exceptions import GracefulHTTPError, VLLMClientError

        return {
            "tokens_input": tokens_input,
            "request_error": (VLLMClientError, ValueError),
            "overflow_error": (GracefulHTTPError,),
        }
    except ImportError:
        return {"tokens_input": tokens_input, "request_error": (ValueError,), "overflow_error": ()}


def _tool_parsers() -> tuple[Any, Any]:
    """vLLM's register of tool parsers and the request that they read, wherever this release has them."""
    try:
        from vllm.tool_parsers import ToolParserManager
    except ImportError:
        from vllm.entrypoints.openai.tool_parsers import ToolParserManager
    try:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    except ImportError:
        from vllm.entrypoints.openai.protocol import ChatCompletionRequest
    return ToolParserManager, ChatCompletionRequest
