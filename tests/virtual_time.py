"""A loop whose clock jumps to the next timer instead of waiting for it: schedules are exact, and an hour takes no time."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits while a timer is set."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0:
            self.now_s += timeout
            timeout = 0
        return super().select(timeout)


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def run(work: Coroutine[None, None, T]) -> T:
    """Run it on such a loop; nothing in it may wait for a thread or a socket."""
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        return runner.run(work)
