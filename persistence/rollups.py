"""The overview's figures: sums by day and model over what `summarizer` added up."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct
from sqlalchemy import Row, bindparam

from persistence.database import Database
from persistence.histogram import Histogram, quantile
from persistence.summaries import day_of
from persistence.timed import timed

# Stands for every digital human together, as it does in scopes; none can be called so.
ALL_CLIENTS: Final = "*"

COUNTS: Final = ("num_sessions", "num_answers", "num_errors", "num_interruptions", "num_up", "num_down")

_decoder: msgspec.json.Decoder[Histogram] = msgspec.json.Decoder(Histogram)


class DayFigures(Struct, frozen=True, kw_only=True):
    """What the answers that a model began on one day (UTC) came to. Ratings are the users', counted on the day of the answer rated.

    `num_sessions` had such an answer, or began that day and have none at all. The times are good to five percent; None without any.
    """

    day: str
    model: str
    num_sessions: int
    num_answers: int
    num_up: int
    num_down: int
    num_errors: int
    num_interruptions: int
    first_token_p50_ms: int | None
    first_token_p99_ms: int | None


async def overview(
    database: Database,
    *,
    from_ms: int,
    to_ms: int,
    model: str | None = None,
    client_id: str | None = None,
    clients: frozenset[str] | None = None,
    hidden_clients: frozenset[str] = frozenset(),
) -> list[DayFigures]:
    """Each day from that of `from_ms` to that of `to_ms`, each model, by day and then model; whole days always.

    `clients`: of these digital humans only, None for any; `hidden_clients`: of none of these.
    """
    shown = clients
    if client_id is not None:
        shown = frozenset({client_id}) if clients is None else clients & {client_id}
    # All but a few are told from fewer rows than all those others have.
    hidden = dict.fromkeys(hidden_clients, -1) | {ALL_CLIENTS: 1}
    # Nobody is asked for by the name under which all are added up.
    signs = hidden if shown is None else dict.fromkeys(shown - hidden_clients - {ALL_CLIENTS}, 1)
    query = "SELECT * FROM rollups WHERE day >= :first AND day <= :last AND client_id IN :clients"
    if model is not None:
        query += " AND model = :model"
    sums: dict[tuple[str, str], _Sum] = {}
    async with database.snapshot() as connection:
        rows = await connection.execute(
            timed(query, database).bindparams(bindparam("clients", expanding=True)),
            {"first": day_of(from_ms), "last": day_of(to_ms), "clients": sorted(signs), "model": model},
        )
        for row in rows:
            # MySQL also gives the rows of who is called so but for spaces.
            if row.client_id in signs:
                sums.setdefault((row.day, row.model), _Sum()).add(row, sign=signs[row.client_id])
    return [_figures(day, name, sums[day, name]) for day, name in sorted(sums) if any(sums[day, name].counts.values())]


class _Sum:
    def __init__(self) -> None:
        self.counts = dict.fromkeys(COUNTS, 0)
        self.first_tokens: Histogram = {}

    def add(self, row: Row[Any], *, sign: int) -> None:
        for name in COUNTS:
            self.counts[name] += sign * getattr(row, name)
        add_counts(self.first_tokens, decode_counts(row.first_tokens), times=sign)


def add_counts(histogram: Histogram, others: Mapping[int, int], *, times: int = 1) -> None:
    """Count the others in, `times` over; -1 takes them out again. What comes to nothing is left out."""
    for bucket, count in others.items():
        total = histogram.get(bucket, 0) + times * count
        if total:
            histogram[bucket] = total
        else:
            histogram.pop(bucket, None)


def decode_counts(text: str) -> Histogram:
    """The counts of a `first_tokens` column."""
    return _decoder.decode(text)


def _figures(day: str, model: str, total: _Sum) -> DayFigures:
    return DayFigures(
        day=day,
        model=model,
        **total.counts,
        first_token_p50_ms=quantile(total.first_tokens, 0.5),
        first_token_p99_ms=quantile(total.first_tokens, 0.99),
    )
