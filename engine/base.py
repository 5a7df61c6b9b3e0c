"""The engine's protocol, its capacity figures and its typed failures. Engines know nothing of sessions' state or of the wire."""

import time
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Protocol, Self

from msgspec import Struct

from sessions.generation import Chunk, Prompt


def epoch_ms() -> int:
    """Now, in milliseconds since the epoch: what an `Origin` tells its times in."""
    return time.time_ns() // 1_000_000


class EngineError(Exception):
    """Root of every error raised by `engine`. `code` is the wire's error code; `retryable` says whether trying again may help."""

    code = "server_error"
    retryable = False


class EngineUnavailable(EngineError):
    """The engine is dead, starting, or cannot be reached."""

    retryable = True


class EngineOverloaded(EngineError):
    """The engine has no room for another request now."""

    code = "rate_limit_exceeded"
    retryable = True


class PromptTooLong(EngineError):
    """The prompt does not fit the context and the session forbids dropping history, or even the newest turn alone is too long."""

    code = "string_above_max_length"

    def __init__(self, num_tokens: int, max_tokens: int) -> None:
        super().__init__(f"the prompt has {num_tokens} tokens, the context holds {max_tokens}")
        self.num_tokens = num_tokens
        self.max_tokens = max_tokens


class ModelNotLoadable(EngineError):
    """The model's files are missing or damaged; raised at start, before the port opens."""

    code = "invalid_model"

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"cannot load the model {model!r}: {reason}")
        self.model = model
        self.reason = reason


class Capacity(Struct, frozen=True):
    """How much an engine can do and does now. `max_requests` 0 means not bounded by the engine itself."""

    running: int
    waiting: int
    max_requests: int
    max_context_tokens: int


class Engine(Protocol):
    """Streams answers. Opened once with `async with`, which loads the model; used by many tasks of one event loop."""

    @property
    def model_name(self) -> str:
        """The name under which sessions ask for this model."""

    async def __aenter__(self) -> Self:
        """Load the model; `ModelNotLoadable` names what is missing."""

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Abort what runs and free the model."""

    def generate(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        """Chunks of one answer, the last with `finish_reason` and `usage`; the first tells its `origin`. Raises `EngineError`.

        Only tools that the prompt offers are called: of its `tools`, the one that `tool_choice` names where it names one.
        With `spoken`, those that come after it: with the text before them, the answer that an undisturbed run would have given.
        Closing the generator or cancelling the task that iterates it aborts the request and frees its slot.
        """

    async def abort(self, response_id: str) -> None:
        """Stop the request of that response now; unknown or finished ones are ignored."""

    def capacity(self) -> Capacity:
        """Figures of this moment; never blocks."""

    def failure(self) -> str | None:
        """None while the engine can answer, else why it cannot, in words an operator can act on."""
