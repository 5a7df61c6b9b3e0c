"""Steps several answers of one model together: the key and value cache, and the choice of each next token.

Knows tensors only; no tasks, no text. Used by one thread.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

PREFILL_TOKENS = 256  # read at once before the running answers get their next token
_MAX_KEPT_BYTES = 256 << 20
_MIN_REUSED_TOKENS = 16
_FIRST_POSITIONS = 256


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 takes the likeliest; `top_k` 0 and `top_p` 1 leave nothing out."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass(eq=False)
class Row:
    """One answer in the batch: its tokens, how many of them the cache holds, and how many of those it found there."""

    tokens: list[int]
    length: int = 0
    num_cached: int = 0

    @property
    def next_token(self) -> int:
        return self.tokens[-1]


class Batch:
    """Up to `max_rows` answers. Each step reads a piece of one new prompt, then gives every running answer its next token.

    Rows that run stand first in the cache, without gaps, so that a step is one call of the model on a slice; the row whose prompt
    is being read stands behind them. What a finished row held is kept for a while: the dialogue's next prompt begins with it.
    """

    def __init__(self, model: Any, *, max_rows: int, max_positions: int, sampling: Sampling) -> None:
        self._model = model
        self._max_rows = max_rows
        self._max_positions = max_positions
        self.sampling = sampling
        self._cache = _Cache()
        self._kept = _Kept()
        self._running: list[Row] = []
        self._reading: Row | None = None

    @property
    def num_rows(self) -> int:
        return len(self._running) + (self._reading is not None)

    @property
    def can_add(self) -> bool:
        return self._reading is None and self.num_rows < self._max_rows

    def add(self, prompt: list[int]) -> Row:
        """A row for a prompt; call only when `can_add`."""
        row = self._reading = Row(prompt)
        with torch.inference_mode():
            if (found := self._kept.find(prompt)) is not None:
                row.length = row.num_cached = found.num_tokens
                self._cache.reserve(self.num_rows, row.length, self._max_rows, self._max_positions)
                self._cache.restore(len(self._running), found)
        return row

    def remove(self, row: Row) -> None:
        """Free a row, at once; the last running one takes its place. One that is not there is ignored."""
        with torch.inference_mode():
            self._remove(row)

    def step(self) -> list[Row]:
        """Advance; the rows returned have a new `next_token`."""
        running = list(self._running)
        with torch.inference_mode():
            if self._reading is not None:
                self._read(self._reading)
            if running:
                self._write(running)
        return list(self._running)

    def _remove(self, row: Row) -> None:
        if row is self._reading:
            self._reading = None
        elif row in self._running:
            place, last = self._running.index(row), len(self._running) - 1
            self._kept.put(self._cache.copy(place, row.tokens[: row.length]))
            self._cache.move(last, place, self._running[last].length)
            self._running[place] = self._running[last]
            self._running.pop()
            if self._reading is not None:
                self._cache.move(last + 1, last, self._reading.length)

    def _read(self, row: Row) -> None:
        place, start = len(self._running), row.length
        end = min(start + PREFILL_TOKENS, len(row.tokens))
        self._cache.reserve(place + 1, end, self._max_rows, self._max_positions)
        self._cache.aim_at(place, start, end)
        positions = torch.arange(start, end)
        mask = torch.arange(end)[None, :] <= positions[:, None]
        logits = self._forward(torch.tensor([row.tokens[start:end]]), positions[None], mask[None, None])
        row.length = end
        if end == len(row.tokens):
            row.tokens.append(choose(logits, self.sampling)[0])
            self._running.append(row)
            self._reading = None

    def _write(self, rows: list[Row]) -> None:
        lengths = torch.tensor([row.length for row in rows])
        end = max(row.length for row in rows) + 1
        self._cache.reserve(len(rows), end, self._max_rows, self._max_positions)
        self._cache.aim_at_each(lengths, end)
        mask = torch.arange(end)[None, :] <= lengths[:, None]
        tokens = torch.tensor([[row.next_token] for row in rows])
        logits = self._forward(tokens, lengths[:, None], mask[:, None, None])
        for row, token in zip(rows, choose(logits, self.sampling), strict=True):
            row.tokens.append(token)
            row.length += 1

    def _forward(self, tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        outputs = self._model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=mask,  # of four dimensions, which transformers takes as it is
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return outputs.logits[:, -1].float()


@dataclass(frozen=True)
class _Prefix:
    """Tokens and what the cache held for them: keys and values of each layer, [head, position, dimension]."""

    tokens: list[int]
    num_tokens: int
    layers: dict[int, tuple[torch.Tensor, torch.Tensor]]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for pair in self.layers.values() for tensor in pair)


class _Kept:
    """The caches of the last rows, the oldest forgotten first. Bounded in bytes."""

    def __init__(self) -> None:
        self._prefixes: list[_Prefix] = []

    def put(self, prefix: _Prefix) -> None:
        """Keep it, instead of those that it continues."""
        self._prefixes = [old for old in self._prefixes if prefix.tokens[: old.num_tokens] != old.tokens]
        self._prefixes.append(prefix)
        while sum(old.num_bytes for old in self._prefixes) > _MAX_KEPT_BYTES:
            self._prefixes.pop(0)

    def find(self, prompt: list[int]) -> _Prefix | None:
        """The longest kept beginning of the prompt, one token left at least; None when it is hardly worth it."""
        lengths = [min(_num_common(old.tokens, prompt), len(prompt) - 1) for old in self._prefixes]
        longest = max(lengths, default=0)
        if longest < _MIN_REUSED_TOKENS:
            return None
        found = self._prefixes[lengths.index(longest)]
        return _Prefix(found.tokens, longest, found.layers)


def _num_common(first: list[int], second: list[int]) -> int:
    both = zip(first, second, strict=False)
    return next((place for place, (a, b) in enumerate(both) if a != b), min(len(first), len(second)))


class _Cache:
    """Keys and values of all rows, one tensor of each a layer, grown by doubling.

    Stands in for a transformers `Cache`, of which a model with a ready-made mask calls only `update`.
    """

    def __init__(self) -> None:
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._shape = (0, 0)
        self._place: tuple[Any, Any] = (0, slice(0))
        self._view: tuple[slice, slice] = (slice(0), slice(0))

    def reserve(self, num_rows: int, num_positions: int, max_rows: int, max_positions: int) -> None:
        """Make room for so many rows and positions."""
        rows, positions = self._shape
        if num_rows > rows:
            rows = min(max_rows, max(num_rows, 2 * rows))
        if num_positions > positions:
            positions = min(max_positions, max(num_positions, 2 * positions, _FIRST_POSITIONS))
        if (rows, positions) != self._shape:
            self._shape = (rows, positions)
            self._layers = {
                layer: (self._grown(keys), self._grown(values)) for layer, (keys, values) in self._layers.items()
            }

    def aim_at(self, row: int, start: int, end: int) -> None:
        """The next update writes one row's positions from `start` to `end`."""
        self._place = (row, slice(start, end))
        self._view = (slice(row, row + 1), slice(end))

    def aim_at_each(self, lengths: torch.Tensor, end: int) -> None:
        """The next update writes one position of each row, behind its length."""
        self._place = (torch.arange(len(lengths)), lengths)
        self._view = (slice(len(lengths)), slice(end))

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store a layer's new keys and values, [row, head, position, dimension]; all that those rows hold so far."""
        if layer not in self._layers:
            self._layers[layer] = (self._empty(keys), self._empty(values))
        rows, positions = self._view
        for stored, new in zip(self._layers[layer], (keys, values), strict=True):
            # Indexed by [row, position], the heads come last: a slice of positions keeps them in the middle.
            stored[self._place[0], :, self._place[1]] = new[0] if isinstance(self._place[0], int) else new[:, :, 0]
        stored_keys, stored_values = self._layers[layer]
        return stored_keys[rows, :, positions], stored_values[rows, :, positions]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy one row over another."""
        if source != target:
            for pair in self._layers.values():
                for stored in pair:
                    stored[target, :, :length] = stored[source, :, :length]

    def copy(self, row: int, tokens: list[int]) -> _Prefix:
        """What a row holds, for the tokens that it holds."""
        length = len(tokens)
        layers = {
            layer: (keys[row, :, :length].clone(), values[row, :, :length].clone())
            for layer, (keys, values) in self._layers.items()
        }
        return _Prefix(tokens, length, layers)

    def restore(self, row: int, prefix: _Prefix) -> None:
        """Fill a row with the first `num_tokens` of a prefix."""
        length = prefix.num_tokens
        for layer, pair in prefix.layers.items():
            for stored, kept in zip(self._layers[layer], pair, strict=True):
                stored[row, :, :length] = kept[:, :length]

    def get_seq_length(self, layer: int = 0) -> int:
        """Asked by models that work out positions themselves; ours are given to them."""
        return 0

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        return like.new_zeros((self._shape[0], like.shape[1], self._shape[1], like.shape[3]))

    def _grown(self, stored: torch.Tensor) -> torch.Tensor:
        grown = self._empty(stored)
        grown[: stored.shape[0], :, : stored.shape[2]] = stored
        return grown


def choose(logits: torch.Tensor, sampling: Sampling) -> list[int]:
    """The next token of each row of [row, vocabulary]."""
    if sampling.temperature <= 0 or sampling.top_k == 1:
        tokens: list[int] = logits.argmax(-1).tolist()
        return tokens
    kept, ids = (logits / sampling.temperature).sort(-1, descending=True)
    if sampling.top_k:
        kept, ids = kept[:, : sampling.top_k], ids[:, : sampling.top_k]
    probabilities = kept.softmax(-1)
    # A token is left out when those before it already make up top_p; the first one never is.
    probabilities[probabilities.cumsum(-1) - probabilities >= sampling.top_p] = 0.0
    drawn = torch.multinomial(probabilities, 1)
    sampled: list[int] = ids.gather(-1, drawn)[:, 0].tolist()
    return sampled


def end_tokens(*ids: int | Iterable[int] | None) -> frozenset[int]:
    """The token ids that end an answer, from wherever a model's configuration names them."""
    found: set[int] = set()
    for value in ids:
        found.update([value] if isinstance(value, int) else value or ())
    return frozenset(found)
