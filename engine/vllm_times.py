"""When vLLM's core took a request up and made its first and last token, noted without the statistics that vLLM keeps of every token.

Those cost the event loop as much for a token as all else that is done here for it; the core itself sends its times once a request.
"""

import time
from typing import Any

from engine.base import epoch_ms

_MAX_SKEW_MS = 50


def note_times(llm: Any) -> None:
    """From now on the `metrics` of an answer's outputs hold the core's times.

    Call before the first request, of an `AsyncLLM` whose `disable_log_stats` is False: the core then tells its times.
    """
    llm.log_stats = False
    llm.logger_manager = None
    llm.output_processor._update_stats_from_output = _note


def _note(state: Any, output: Any, core_s: float | None, _: object) -> None:
    """In the place of `OutputProcessor._update_stats_from_output`, which is called with each output of the core."""
    if output.finish_reason is not None:
        state.stats.last_token_ts = core_s or 0.0
    if not state.is_prefilling:
        return  # nearly every output
    state.stats.first_token_ts = core_s or 0.0
    for event in output.events or ():
        if event.type.name == "SCHEDULED":
            state.stats.scheduled_ts = event.timestamp
            return


class CoreClock:
    """The core's times of one answer, which is asked for now, as milliseconds since the epoch.

    The core counts seconds of the machine's monotonic clock. A core on another machine counts others: what it says is not believed.
    """

    __slots__ = ("_ahead_s", "_since_ms")

    def __init__(self) -> None:
        self._since_ms = epoch_ms()
        self._ahead_s = time.time() - time.monotonic()

    def at_ms(self, core_s: float) -> int | None:
        """None for what the core has not told."""
        now_ms = epoch_ms()
        told_ms = int((self._ahead_s + core_s) * 1000)
        if not core_s or not self._since_ms - _MAX_SKEW_MS <= told_ms <= now_ms + _MAX_SKEW_MS:
            return None
        return min(max(told_ms, self._since_ms), now_ms)
