"""A CPU engine for laptops: any Hugging Face model of plain attention, through transformers and torch, several answers at a time.

One thread owns the model and steps all live answers together; the event loop owns everything else. Tokens cross between them by
`call_soon_threadsafe`, once a step. It is made for small models and few people; everything larger is vLLM's.
"""

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from engine.base import Capacity, EngineError, EngineOverloaded, EngineUnavailable, ModelNotLoadable, epoch_ms
from engine.prompt import EncodedPrompt, PromptEncoder
from engine.tool_calls import HermesParser, offered_names
from sessions.generation import Chunk, FinishReason, FunctionChoice, Origin, Prompt, ToolCallDelta

if TYPE_CHECKING:
    from engine.local_batch import Batch, Row, Sampling

_MAX_CONTEXT_TOKENS = 8192  # of models that could do more: a laptop's memory could not
_CONTEXT_WITHOUT_CONFIG = 2048
_MIN_SHARED_PARAMETERS = 50_000_000  # below, cores that work together wait for each other longer than they work
_encoder = msgspec.json.Encoder()
_NUM_PRIMING_TOKENS = 8  # enough of the prompt for a decoder to know whether a word goes on


class LocalEngine:
    """Runs the model of a folder or a hub name. `max_requests` answers run together, `max_waiting` more wait for a place.

    Temperature, top_p and top_k are those of the model's generation_config.json.
    """

    def __init__(
        self,
        model: str,
        name: str | None = None,
        *,
        max_model_len: int | None = None,
        max_requests: int = 8,
        max_waiting: int = 32,
    ) -> None:
        self._model = model
        self._name = name or Path(model).name
        self._max_model_len = max_model_len
        self._max_requests = max_requests
        self._max_waiting = max_waiting
        self._answers: set[_Answer] = set()
        self._worker: _Worker | None = None
        self._encoder: PromptEncoder | None = None
        self._failure: str | None = "the engine has not been started"

    @property
    def model_name(self) -> str:
        return self._name

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._encoder, batch, end_tokens = await asyncio.to_thread(self._load)
        self._failure = None
        self._worker = _Worker(batch, end_tokens, lambda tell: loop.call_soon_threadsafe(tell), self._break_down)
        self._worker.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._break_down("the engine was stopped")
        if self._worker is not None:
            self._worker.inbox.put(None)
            await asyncio.to_thread(self._worker.join)
        self._worker = self._encoder = None

    async def generate(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        if self._encoder is None or self._worker is None or self._failure is not None:
            raise EngineUnavailable(self._failure or "the engine has not been started")
        if len(self._answers) >= self._max_requests + self._max_waiting:
            raise EngineOverloaded(f"{len(self._answers)} answers are running or waiting")
        answer = _Answer(prompt.response_id)
        self._answers.add(answer)
        try:
            encoded = await self._encoder.encode_async(prompt)
            if encoded.num_left <= 0:
                yield Chunk(usage=encoded.usage(), finish_reason="length")
                return
            reader = _Reader(self._encoder, encoded, prompt)
            answer.prompt = encoded.all_ids + reader.demanded_ids
            answer.num_left = answer.max_tokens = max(1, encoded.num_left - len(reader.demanded_ids))
            self._worker.inbox.put(answer)
            is_first, finish = True, None
            while finish is None and (arrived := await answer.arrivals()):
                tokens, finish = arrived
                chunk = reader.read(tokens, finish)
                if is_first or finish:
                    usage = encoded.usage(reader.num_tokens, answer.num_cached)
                    origin = self._worker.origin(answer, encoded.text + reader.demanded)
                    chunk = msgspec.structs.replace(chunk, usage=usage, origin=origin)
                if chunk.text or chunk.tool_calls or finish:
                    is_first = False
                    yield chunk
        finally:
            answer.is_aborted = True  # the thread sees it before its next step
            self._answers.discard(answer)

    async def abort(self, response_id: str) -> None:
        for answer in [answer for answer in self._answers if answer.response_id == response_id]:
            self._answers.remove(answer)
            answer.abort()

    def capacity(self) -> Capacity:
        running = min(len(self._answers), self._max_requests)
        context = self._encoder.max_context_tokens if self._encoder else 0
        return Capacity(running, len(self._answers) - running, self._max_requests, context)

    def failure(self) -> str | None:
        return self._failure

    def _break_down(self, reason: str) -> None:
        """Fail what runs, and refuse what comes."""
        self._failure = self._failure or reason
        for answer in self._answers:
            answer.fail(EngineUnavailable(reason))

    def _load(self) -> "tuple[PromptEncoder, Batch, frozenset[int]]":
        """The model from its files; every way they can be wrong is a `ModelNotLoadable`."""
        from engine.local_batch import Batch, Sampling, end_tokens

        if Path(self._model).is_absolute() and not Path(self._model).is_dir():
            raise ModelNotLoadable(self._model, "there is no such folder")
        try:
            model = _load_weights(self._model)
        except EngineError:
            raise
        except Exception as error:  # transformers, safetensors and torch raise nearly anything on damaged files
            raise ModelNotLoadable(self._model, str(error) or type(error).__name__) from error
        possible = getattr(model.config, "max_position_embeddings", _CONTEXT_WITHOUT_CONFIG)
        context = min(possible, self._max_model_len or _MAX_CONTEXT_TOKENS)
        encoder = PromptEncoder.load(self._model, max_context_tokens=context)
        wanted = model.generation_config
        sampling = Sampling(
            temperature=(1.0 if wanted.temperature is None else wanted.temperature) if wanted.do_sample else 0.0,
            top_p=1.0 if wanted.top_p is None else wanted.top_p,
            top_k=wanted.top_k or 0,
        )
        batch = Batch(model, max_rows=self._max_requests, max_positions=context, sampling=sampling)
        ends = end_tokens(wanted.eos_token_id, model.config.eos_token_id, encoder.tokenizer.eos_token_id)
        return encoder, batch, ends


def _load_weights(folder: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model, loading = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True
    )
    if missing := sorted(loading["missing_keys"]):  # transformers would fill them with random numbers
        raise ModelNotLoadable(folder, f"{len(missing)} tensors are missing from its weights, such as {missing[0]}")
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ModelNotLoadable(
            folder, f"the local engine does full attention only, not {', '.join(sorted(kinds))}; use vllm"
        )
    if model.num_parameters() < _MIN_SHARED_PARAMETERS:
        torch.set_num_threads(1)
    return model.eval()


class _Answer:
    """One request, between the event loop and the thread, which reads `is_aborted` and `prompt`, counts the rest and notes its times."""

    def __init__(self, response_id: str) -> None:
        self.response_id = response_id
        self.prompt: list[int] = []
        self.num_left = 0
        self.num_cached = 0
        self.max_tokens = 0
        self.taken_ms: int | None = None
        self.first_token_ms: int | None = None
        self.last_token_ms: int | None = None
        self.is_aborted = False
        self._arrived: deque[tuple[int, FinishReason | None]] = deque()
        self._news = asyncio.Event()
        self._error: EngineError | None = None

    def put(self, token: int, finish: FinishReason | None) -> None:
        self._arrived.append((token, finish))
        self._news.set()

    def abort(self) -> None:
        self.is_aborted = True
        self._news.set()

    def fail(self, error: EngineError) -> None:
        self._error = error
        self._news.set()

    async def arrivals(self) -> tuple[list[int], FinishReason | None] | None:
        """The tokens that came since the last time, one at least, and how the answer ended; None when it was aborted."""
        await self._news.wait()
        self._news.clear()
        if self.is_aborted:
            return None
        if self._error is not None:
            raise self._error
        tokens, finish = [token for token, _ in self._arrived], self._arrived[-1][1]
        self._arrived.clear()
        return tokens, finish


class _Reader:
    """Turns an answer's tokens into text and tool calls; a character is held back until all of its bytes are there."""

    def __init__(self, encoder: PromptEncoder, encoded: EncodedPrompt, prompt: Prompt) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = encoder.tokenizer.backend_tokenizer
        names = offered_names(prompt)
        self._parser = HermesParser(names) if names else None
        self.demanded = demanded = _demanded(prompt)
        self.demanded_ids: list[int] = (
            self._tokenizer.encode(demanded, add_special_tokens=False).ids if demanded else []
        )
        self._begun = self._parser.feed(demanded, self.demanded_ids)[1] if self._parser and demanded else ()
        self.num_tokens = 0
        self._num_unsent = 0
        before = encoded.all_ids + self.demanded_ids
        self._stream = DecodeStream(ids=before[-_NUM_PRIMING_TOKENS:], skip_special_tokens=True)

    def read(self, tokens: list[int], finish: FinishReason | None) -> Chunk:
        """What the tokens add. The token that ends an answer with `stop` is special and has no text."""
        text = "".join(self._stream.step(self._tokenizer, token) or "" for token in tokens)
        calls: tuple[ToolCallDelta, ...] = ()
        if self._parser is not None:
            text, calls = self._parser.feed(text, tokens)
            calls, self._begun = self._begun + calls, ()
        if self._parser is not None and finish:
            rest, more = self._parser.finish()
            text, calls = text + rest, calls + more
            finish = "tool_calls" if finish == "stop" and self._parser.num_calls else finish
        self.num_tokens += len(tokens)
        self._num_unsent += len(tokens)
        chunk = Chunk(text, self._num_unsent, calls, finish_reason=finish)
        if text or calls or finish:
            self._num_unsent = 0
        return chunk


class _Worker(threading.Thread):
    """The thread that owns the batch. A daemon, so that a step that hangs cannot keep the process alive."""

    def __init__(
        self,
        batch: "Batch",
        end_tokens: frozenset[int],
        tell: Callable[[Callable[[], None]], object],
        break_down: Callable[[str], None],
    ) -> None:
        super().__init__(name="local-engine", daemon=True)
        self.inbox: queue.SimpleQueue[_Answer | None] = queue.SimpleQueue()
        self._batch = batch
        self._end_tokens = end_tokens
        self._tell = tell
        self._break_down = break_down
        self._waiting: deque[_Answer] = deque()
        self._rows: dict[Row, _Answer] = {}

    def origin(self, answer: _Answer, text: str) -> Origin:
        """How the answer came to be, as far as it is known by now."""
        sampling: Sampling = self._batch.sampling
        used = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": answer.max_tokens,
            "stop_token_ids": sorted(self._end_tokens),
        }
        return Origin(
            prompt=text,
            sampling=msgspec.Raw(_encoder.encode(used)),
            taken_ms=answer.taken_ms,
            first_token_ms=answer.first_token_ms,
            last_token_ms=answer.last_token_ms,
        )

    def run(self) -> None:
        try:
            while self._take():
                self._drop_aborted()
                while self._waiting and self._batch.can_add:
                    answer = self._waiting.popleft()
                    if not answer.is_aborted:
                        answer.taken_ms = epoch_ms()
                        self._rows[self._batch.add(answer.prompt)] = answer
                if self._rows:
                    self._step()
        except Exception as error:  # whatever torch raises: those who wait must hear of it
            reason = f"the model's thread died: {type(error).__name__}: {error}"
            self._tell(lambda: self._break_down(reason))

    def _take(self) -> bool:
        """Move new requests to `_waiting`, blocking while there is nothing to do; False when the engine stops."""
        while True:
            is_idle = not (self._rows or self._waiting)
            try:
                answer = self.inbox.get(block=is_idle)
            except queue.Empty:
                return True
            if answer is None:
                return False
            self._waiting.append(answer)

    def _drop_aborted(self) -> None:
        for row, answer in list(self._rows.items()):
            if answer.is_aborted:
                self._batch.remove(row)
                del self._rows[row]

    def _step(self) -> None:
        news: list[tuple[_Answer, int, FinishReason | None]] = []
        for row in self._batch.step():
            answer = self._rows[row]
            answer.num_left -= 1
            answer.num_cached = row.num_cached
            if answer.first_token_ms is None:
                answer.first_token_ms = epoch_ms()
            finish: FinishReason | None = None
            if row.next_token in self._end_tokens:
                finish = "stop"
            elif answer.num_left <= 0:
                finish = "length"
            news.append((answer, row.next_token, finish))
            if finish:
                answer.last_token_ms = epoch_ms()
                self._batch.remove(row)
                del self._rows[row]
        if news:
            self._tell(lambda: _deliver(news))


def _deliver(news: list[tuple[_Answer, int, FinishReason | None]]) -> None:
    for answer, token, finish in news:
        answer.put(token, finish)


def _demanded(prompt: Prompt) -> str:
    """How the answer must begin when the client demands a tool: the opening of a Hermes call."""
    if prompt.spoken:  # it has begun, and what was said of it was no call
        return ""
    match prompt.tool_choice:
        case FunctionChoice(name=name) if any(tool.name == name for tool in prompt.tools):
            return f'<tool_call>\n{{"name": "{name}", "arguments":'
        case "required" if prompt.tools:
            return '<tool_call>\n{"name": "'
        case _:
            return ""
