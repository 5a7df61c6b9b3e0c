"""Bounds of one dialogue, so that no client can fill the store."""

from msgspec import Struct

MAX_PROMPT_BYTES = 1 << 20


class DialogueLimits(Struct, frozen=True):
    """How much one dialogue may hold and do at once. A longer prompt than `max_prompt_bytes` is not kept with its answer; 0 keeps none.

    `max_chars`: of all its items together. `max_config_bytes`: of the session's configuration as JSON.
    """

    max_items: int = 2000
    max_chars: int = 4_000_000
    max_config_bytes: int = 512 * 1024
    max_answers: int = 8
    max_instructions_chars: int = 32_768
    max_item_chars: int = 65_536
    max_prompt_bytes: int = MAX_PROMPT_BYTES
    max_comment_chars: int = 2_000
    feedback_reasons: tuple[str, ...] = ("inaccurate", "unsafe", "off-topic", "too-long", "too-slow", "other")
