"""Turns a `Prompt` into token ids: the model's own chat template, history fitted to the context, each text tokenised once.

What people typed never becomes a control token: the template's own special tokens are the only ones, however a text is spelled.
"""

import asyncio
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Self

import msgspec
from msgspec import Struct

from engine.base import EngineError, ModelNotLoadable, PromptTooLong
from sessions.generation import FunctionTool, Prompt, RetentionRatio, Usage
from sessions.items import FunctionCallItem, FunctionCallOutputItem, InputText, Item, MessageItem, OutputText

# Unicode noncharacters, never valid in interchanged text (Unicode 16, section 23.7), so nobody's text needs them.
_GUARD = "\ufdd0"  # inside a spelled-out control token, so that no search finds it
_MARK = "\ufdd1"  # before a turn's first text, so that the turn is found again in the rendered prompt

DEFAULT_RESERVE_TOKENS = 1024
MIN_ANSWER_TOKENS = 64
_MAX_COLD_CHARS = 16_384  # tokenising more than this holds the event loop for several milliseconds
_BYTES_PER_TOKEN = 40  # a pointer in a list and the int it points to
_BYTES_PER_ENTRY = 300  # the headers of the entry, its string and its list

_Message = dict[str, Any]  # a chat template's message: JSON, as templates expect it


class EncodedPrompt(Struct, frozen=True):
    """A prompt ready for a model, and what was already said of the answer, which follows it.

    `max_output_tokens` is the whole answer's limit; `tail` is the text after the prompt's last control token. `text` is all that was
    tokenised, what was said included, before any normalisation of the tokenizer's own.
    """

    text: str
    token_ids: list[int]
    spoken_ids: list[int]
    num_dropped_items: int
    max_output_tokens: int
    tail: str

    @property
    def all_ids(self) -> list[int]:
        """What the model reads before its next token."""
        return self.token_ids + self.spoken_ids

    @property
    def num_left(self) -> int:
        """How many tokens the answer may still have; none or less when it has reached its limit."""
        return self.max_output_tokens - len(self.spoken_ids)

    def usage(self, num_new: int = 0, num_cached: int = 0) -> Usage:
        """That of the whole answer after so many new tokens; `num_cached` of all that was read were in the cache."""
        return Usage(len(self.token_ids), len(self.spoken_ids) + num_new, min(num_cached, len(self.token_ids)))


class _ColdPrompt(Exception):
    """Too much text has to be tokenised to do it on the event loop."""


class PromptEncoder:
    """One model's tokenizer and chat template. Used by many tasks and threads.

    `template_kwargs` reach the chat template; `enable_thinking` is off unless set, because an avatar would speak its thoughts.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_context_tokens: int,
        template_kwargs: Mapping[str, object] | None = None,
        max_cache_bytes: int = 64 << 20,
    ) -> None:
        from jinja2 import TemplateError  # comes with transformers, which only engines with a model of their own need

        self.tokenizer = tokenizer
        self._template_error = TemplateError
        self.max_context_tokens = max_context_tokens
        self._template_kwargs = {"enable_thinking": False, **(template_kwargs or {})}
        self._cache = _SegmentCache(max_cache_bytes)
        self._added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
        self._added_ids = frozenset(self._added.values())
        special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._guard_added = _Guard(self._added)
        self._guard_special = _Guard(special)
        self._split = re.compile(f"({_any_of(self._added)})").split if self._added else lambda text: [text]
        self._plain = _without_added_tokens(tokenizer.backend_tokenizer)
        self.is_segmented = self._segments_are_exact()

    @classmethod
    def load(cls, model: str, *, max_context_tokens: int, template_kwargs: Mapping[str, object] | None = None) -> Self:
        """The encoder of a model in a folder or on the hub; `ModelNotLoadable` says what is wrong with it."""
        from transformers import AutoTokenizer  # takes seconds, and only engines with a model of their own need it

        try:
            tokenizer = AutoTokenizer.from_pretrained(model)
            if not tokenizer.is_fast:
                raise ModelNotLoadable(model, "its tokenizer has no tokenizer.json")
            if not tokenizer.chat_template:
                raise ModelNotLoadable(model, "its tokenizer has no chat template")
            return cls(tokenizer, max_context_tokens=max_context_tokens, template_kwargs=template_kwargs)
        except EngineError:
            raise
        except Exception as error:  # transformers raises nearly anything on damaged files
            raise ModelNotLoadable(model, f"its tokenizer: {error}") from error

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        """The prompt's token ids, its oldest turns dropped as its `truncation` allows; raises `PromptTooLong`.

        `spoken` has no part in what is dropped: a prompt that is gone on with is the prompt that was begun with.
        """
        return self._encode(prompt, max_cold_chars=None)

    async def encode_async(self, prompt: Prompt) -> EncodedPrompt:
        """The same as `encode`, in a thread when much of the prompt was never tokenised here."""
        try:
            return self._encode(prompt, max_cold_chars=_MAX_COLD_CHARS)
        except _ColdPrompt:
            return await asyncio.to_thread(self.encode, prompt)

    def seed(self, encoded: EncodedPrompt, text: str, token_ids: Sequence[int]) -> bool:
        """Remember how the model itself spelled its whole answer, so that the next prompt's prefix is found in its cache.

        False when the ids are not exactly this text, or when the text could not stand in one segment.
        """
        ids = list(token_ids)
        while ids and ids[-1] in self._added_ids:  # the end of the answer is not part of its text
            ids.pop()
        if not self.is_segmented or not text or self._guard_added.finds(text) or not self._added_ids.isdisjoint(ids):
            return False
        if self._plain.decode(ids) != text:
            return False
        tail_ids = self._segment(encoded.tail) if encoded.tail else []
        self._cache.put(encoded.tail + text, tail_ids + ids)
        return True

    def _encode(self, prompt: Prompt, *, max_cold_chars: int | None) -> EncodedPrompt:
        turns = turns_of(prompt.items)
        reserve = reserve_tokens(prompt.max_output_tokens, self.max_context_tokens)
        limit = self.max_context_tokens - reserve
        hard_limit = self.max_context_tokens - min(reserve, MIN_ANSWER_TOKENS)
        items = prompt.items
        text = self._render(prompt, items)
        ids = self._ids(text, max_cold_chars)
        if len(ids) > limit and prompt.truncation != "disabled":
            num_turns = self._num_to_drop(prompt, turns, limit)
            while True:
                items = without_turns(turns, num_turns)
                text = self._render(prompt, items)
                ids = self._ids(text, max_cold_chars)
                if len(ids) <= limit or num_turns >= len(turns) - 1:
                    break
                num_turns += 1
        if len(ids) > hard_limit:
            raise PromptTooLong(len(ids), hard_limit)
        room = self.max_context_tokens - len(ids)
        spoken = self._guard_special(prompt.spoken) if prompt.spoken else ""
        return EncodedPrompt(
            text=(text + spoken).replace(_GUARD, self._unguard),
            token_ids=ids,
            spoken_ids=self._spoken_ids(text, ids, spoken, max_cold_chars) if spoken else [],
            num_dropped_items=len(prompt.items) - len(items),
            max_output_tokens=min(room, prompt.max_output_tokens or room),
            tail=self._split(text)[-1].replace(_GUARD, ""),
        )

    @property
    def _unguard(self) -> str:
        """What becomes of a guard: a character of no width where nothing else keeps a spelled-out token from being one."""
        return "" if self.is_segmented else "\u200b"

    def _num_to_drop(self, prompt: Prompt, turns: list[tuple[Item, ...]], limit: int) -> int:
        """How many of the oldest turns must go, from what each costs in the whole prompt; the caller verifies it."""
        pieces = self._render(prompt, prompt.items, marked=turns).split(_MARK)
        if len(pieces) != len(turns) + 1:  # the template hides or repeats texts: the caller finds out by trying
            return 0
        fixed, *costs = (len(self._ids(piece, None)) for piece in pieces)
        if not isinstance(prompt.truncation, RetentionRatio):
            excess = fixed + sum(costs) - limit
            num_turns = sum(dropped < excess for dropped in accumulate(costs)) + 1
            return min(num_turns, len(costs) - 1)
        # Played from the start, so that the same turns go at the next prompt too and the prefix cache lasts until the next cut.
        keep, first, total = prompt.truncation.retention_ratio * limit, 0, fixed
        for number, cost in enumerate(costs):
            total += cost
            if total > limit:
                while total > keep and first < number:
                    total -= costs[first]
                    first += 1
        return first

    def _render(self, prompt: Prompt, items: Sequence[Item], *, marked: Sequence[tuple[Item, ...]] = ()) -> str:
        marks = {item.id for turn in marked for item in turn[:1]}
        messages = list(self._messages(prompt.instructions, items, marks)) or [{"role": "user", "content": ""}]
        tools = [self._tool(tool) for tool in prompt.tools] if prompt.tool_choice != "none" else []
        try:
            text: str = self.tokenizer.apply_chat_template(
                messages, tools=tools or None, tokenize=False, add_generation_prompt=True, **self._template_kwargs
            )
        except self._template_error as error:
            raise EngineError(f"the model's chat template refuses this conversation: {error}") from error
        return text

    def _messages(self, instructions: str, items: Sequence[Item], marks: set[str]) -> Iterator[_Message]:
        if instructions:
            yield {"role": "system", "content": self._guard_added(instructions)}
        names: dict[str, str] = {}
        answer: _Message | None = None  # the assistant's message that further calls still join
        for item in items:
            mark = _MARK if item.id in marks else ""
            if isinstance(item, FunctionCallItem):
                names[item.call_id] = self._guard_added(item.name)
                if answer is None:
                    answer = {"role": "assistant", "content": mark}
                answer.setdefault("tool_calls", []).append(self._tool_call(item))
                continue
            if answer is not None:
                yield answer
                answer = None
            if isinstance(item, FunctionCallOutputItem):
                content = mark + self._guard_added(item.output)
                name = names.get(item.call_id, "")
                call_id = self._guard_added(item.call_id)
                yield {"role": "tool", "tool_call_id": call_id, "name": name, "content": content}
            elif item.role == "assistant":
                answer = {"role": "assistant", "content": mark + self._guard_special(item.text)}
            else:
                yield {"role": item.role, "content": mark + self._guard_added(item.text)}
        if answer is not None:
            yield answer

    def _tool_call(self, item: FunctionCallItem) -> _Message:
        try:
            arguments = self._guard_special.json(json.loads(item.arguments))
        except ValueError:
            arguments = self._guard_special(item.arguments)
        function = {"name": self._guard_special(item.name), "arguments": arguments}
        return {"id": self._guard_added(item.call_id), "type": "function", "function": function}

    def _tool(self, tool: FunctionTool) -> _Message:
        parameters = msgspec.json.decode(tool.parameters)
        function = {"name": tool.name, "description": tool.description or "", "parameters": parameters}
        return {"type": "function", "function": self._guard_added.json(function)}

    def _spoken_ids(self, text: str, ids: list[int], spoken: str, max_cold_chars: int | None) -> list[int]:
        """Most likely the tokens that the model itself chose after the prompt's `text`, whose ids stay what they are."""
        whole = self._ids(text + spoken, max_cold_chars)  # alone, some tokenizers would begin it with a space
        return whole[len(ids) :] if whole[: len(ids)] == ids else self._ids(spoken, max_cold_chars)

    def _ids(self, text: str, max_cold_chars: int | None) -> list[int]:
        if not self.is_segmented:
            ids: list[int] = self.tokenizer.backend_tokenizer.encode(
                text.replace(_GUARD, self._unguard), add_special_tokens=False
            ).ids
            return ids
        segments: list[str] = self._split(text)
        if _GUARD in text:
            segments = [
                segment.replace(_GUARD, self._unguard) if _GUARD in segment else segment for segment in segments
            ]
        if max_cold_chars is not None and len(text) > max_cold_chars:
            cold = sum(len(segment) for segment in segments[::2] if segment not in self._cache)
            if cold > max_cold_chars:
                raise _ColdPrompt
        ids = []
        for number, segment in enumerate(segments):
            if number % 2:  # re.split puts the separators, here the control tokens, at the odd places
                ids.append(self._added[segment])
            elif segment:
                ids.extend(self._segment(segment))
        return ids

    def _segment(self, text: str) -> list[int]:
        ids = self._cache.get(text)
        if ids is None:
            ids = self._plain.encode(text, add_special_tokens=False).ids
            self._cache.put(text, ids)
        return ids

    def _segments_are_exact(self) -> bool:
        """Whether tokenising between control tokens gives what tokenising the whole gives. True for byte-level BPE."""
        if any(
            token.lstrip or token.rstrip or token.single_word for token in self.tokenizer.added_tokens_decoder.values()
        ):
            return False
        if any(self._added[token] in self._plain.encode(token, add_special_tokens=False).ids for token in self._added):
            return False
        self.is_segmented = True
        text = self._render(_PROBE, _PROBE.items)
        whole = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        return bool(self._ids(text, None) == whole)


class _Guard:
    """Makes given tokens unfindable in a text, and the guard's own characters impossible in it."""

    def __init__(self, tokens: Sequence[str] | Mapping[str, int]) -> None:
        self._firsts = tuple({_GUARD, _MARK, *(token[0] for token in tokens)})
        # A lookahead finds overlapping tokens too: no spelling may survive the guarding of another.
        self._token = re.compile(f"(?=(?:{_any_of(tokens)}))(.)", re.DOTALL) if tokens else None

    def __call__(self, text: str) -> str:
        for first in self._firsts:
            if first in text:
                break
        else:  # nearly every text; far cheaper than the search
            return text
        text = text.replace(_GUARD, "\ufffd").replace(_MARK, "\ufffd")
        return self._token.sub(rf"\1{_GUARD}", text) if self._token else text

    def finds(self, text: str) -> bool:
        return self(text) != text

    def json(self, value: Any) -> Any:
        """The same for every string in a JSON document."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, dict):
            return {self(str(key)): self.json(child) for key, child in value.items()}
        return [self.json(child) for child in value] if isinstance(value, list) else value


class _SegmentCache:
    """Token ids by text, the least recently used forgotten first. Bounded in bytes; used by many threads."""

    def __init__(self, max_bytes: int) -> None:
        self._entries: OrderedDict[str, list[int]] = OrderedDict()
        self._lock = threading.Lock()
        self._max_bytes = max_bytes
        self._num_bytes = 0

    def __contains__(self, text: str) -> bool:
        return text in self._entries

    def get(self, text: str) -> list[int] | None:
        with self._lock:
            ids = self._entries.get(text)
            if ids is not None:
                self._entries.move_to_end(text)
            return ids

    def put(self, text: str, ids: list[int]) -> None:
        with self._lock:
            if (old := self._entries.pop(text, None)) is not None:
                self._num_bytes -= _num_bytes(text, old)
            self._entries[text] = ids
            self._num_bytes += _num_bytes(text, ids)
            while self._num_bytes > self._max_bytes:
                self._num_bytes -= _num_bytes(*self._entries.popitem(last=False))


def _num_bytes(text: str, ids: list[int]) -> int:
    return _BYTES_PER_ENTRY + 4 * len(text) + _BYTES_PER_TOKEN * len(ids)


def _any_of(tokens: Sequence[str] | Mapping[str, int]) -> str:
    """A pattern for any of the tokens, the longest first, as the tokenizer itself would find them."""
    return "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))


def _without_added_tokens(tokenizer: Any) -> Any:
    """The same tokenizer, for which every text is only text."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps({**json.loads(tokenizer.to_str()), "added_tokens": []}))


def reserve_tokens(max_output_tokens: int | None, max_context_tokens: int) -> int:
    """Tokens kept free for the answer: what was asked, but never more than half of the context."""
    if max_output_tokens is None:
        return min(DEFAULT_RESERVE_TOKENS, max_context_tokens // 4)
    return min(max_output_tokens, max_context_tokens // 2)


def turns_of(items: Sequence[Item]) -> list[tuple[Item, ...]]:
    """The items cut before each user message; what stands before the first one belongs to the first turn."""
    is_user = [isinstance(item, MessageItem) and item.role == "user" for item in items]
    starts = [number for number, user in enumerate(is_user) if user][1:]
    return [tuple(items[start:end]) for start, end in zip([0, *starts], [*starts, len(items)], strict=True)]


def without_turns(turns: Sequence[tuple[Item, ...]], num_turns: int) -> tuple[Item, ...]:
    """All items but those of the oldest turns, of which only the system's messages stay."""
    system = (
        item for turn in turns[:num_turns] for item in turn if isinstance(item, MessageItem) and item.role == "system"
    )
    return (*system, *(item for turn in turns[num_turns:] for item in turn))


# Texts at whose edges a tokenizer that is not byte-level, or normalises, would betray itself.
_PROBE = Prompt(
    response_id="",
    session_id="",
    instructions=" You are helpful.\n",
    items=(
        MessageItem(id="1", role="user", content=(InputText(" leading and trailing \n\n"),)),
        MessageItem(
            id="2", role="assistant", content=(OutputText("\ncaf\u00e9, cafe\u0301, \u210c 12345 don't \t x"),)
        ),
        MessageItem(id="3", role="user", content=(InputText("안녕하세요 👩\u200d💻 日本 \u0635"),)),
        FunctionCallItem(id="4", call_id="c", name="look_up", arguments='{"q": "날씨 <b>"}'),
        FunctionCallOutputItem(id="5", call_id="c", output='{"a": [1, 2]}'),
        MessageItem(id="6", role="assistant", content=(OutputText("ok"),)),
        MessageItem(id="7", role="user", content=(InputText("a"),)),
    ),
    tools=(FunctionTool(name="look_up", description="Looks up."),),
)
