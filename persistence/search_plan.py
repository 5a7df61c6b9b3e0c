"""How a search is asked of the database: which lists it may walk down, and the query for each. Pure."""

from collections.abc import Iterator, Sequence
from typing import Final, Literal, TypeVar

from msgspec import Struct

from persistence.search_tables import summaries
from persistence.summaries import SLOW_STEPS_MS, label

T = TypeVar("T")

# Each of them is a list of its own to merge; who sees more digital humans has them picked out of what everybody sees.
MAX_MERGED_CLIENTS: Final = 16

_COLUMNS: Final = ", ".join(f"s.{column.name} AS {column.name}" for column in summaries.columns)


class SessionFilter(Struct, frozen=True, kw_only=True):
    """Which sessions are wanted: those for which everything that is set here is so. Times are of the session's creation.

    `from_ms` is included, `to_ms` is not. `text`: words that were all said in the session, by anybody. `clients`: of these digital humans
    only, None for any; `hidden_clients`: of none of these. `min_first_token_ms`: some answer's first token took so long.
    """

    user_id: str | None = None
    client_id: str | None = None
    model: str | None = None
    status: str | None = None
    rating: Literal["up", "down", "none"] | None = None
    text: str | None = None
    from_ms: int | None = None
    to_ms: int | None = None
    min_first_token_ms: int | None = None
    has_errors: bool = False
    has_interruptions: bool = False
    clients: frozenset[str] | None = None
    hidden_clients: frozenset[str] = frozenset()


class Plan(Struct, frozen=True):
    """The lists that hold every wanted session, each of one term or of several to be merged; what a row must satisfy besides.

    `needs_no_floor`: every session of the one list, or every session at all, is wanted, so that a walk ends by itself.
    """

    lists: list[list[str]]
    num_words: int
    conditions: list[str]
    parameters: dict[str, str | int]
    needs_no_floor: bool

    def floors_query(self) -> str:
        """One row that tells, for each term of each list, the place of the session `:depth` below `:upper`, NULL where there are fewer."""
        tail = "place < :upper AND place >= :least ORDER BY place DESC LIMIT 1 OFFSET :depth"
        if not self.lists:
            return f"SELECT (SELECT place FROM summaries WHERE {tail}) AS f"  # noqa: S608
        probes = (
            f"(SELECT place FROM postings WHERE term = :{name} AND {tail}) AS f_{name}"  # noqa: S608
            for names in self.lists
            for name in names
        )
        return f"SELECT {', '.join(probes)}"

    def by_list(self, found: Sequence[T]) -> Iterator[Sequence[T]]:
        """The values of a row of `floors_query`, list by list."""
        start = 0
        for names in self.lists or [["f"]]:
            yield found[start : start + len(names)]
            start += len(names)

    def query(self, number: int, *, on_mysql: bool) -> str:
        """The newest `:num_rows` rows below `:upper`, not below `:floor`, by walking down that list."""
        # Both spell a join whose order the planner leaves alone.
        join = "STRAIGHT_JOIN" if on_mysql else "CROSS JOIN"
        if not self.lists:
            return self._walk("summaries s", "s", [], on_mysql=on_mysql)
        others = [names[0] for names in self.lists[: self.num_words] if names != self.lists[number]]
        tables = "postings d" + "".join(
            f" {join} postings p_{name} ON p_{name}.term = :{name} AND p_{name}.place = d.place" for name in others
        )
        tables += f" {join} summaries s ON s.place = d.place"
        walks = [self._walk(tables, "d", [f"d.term = :{name}"], on_mysql=on_mysql) for name in self.lists[number]]
        if len(walks) == 1:
            return walks[0]
        merged = " UNION ALL ".join(f"SELECT * FROM ({walk}) AS w{i}" for i, walk in enumerate(walks))  # noqa: S608
        return f"{merged} ORDER BY place DESC LIMIT :num_rows"

    def _walk(self, tables: str, driver: str, terms: list[str], *, on_mysql: bool) -> str:
        conditions = [f"{driver}.place < :upper", f"{driver}.place >= :floor", *self.conditions]
        if not on_mysql:
            # SQLite guesses that each of them leaves few rows, and where it comes to none at all, sorts what comes in order already: it
            # would read the list to its end for that.
            conditions = [f"likelihood({condition}, 1.0)" for condition in conditions]
        where = " AND ".join([*terms, *conditions])
        return f"SELECT {_COLUMNS} FROM {tables} WHERE {where} ORDER BY {driver}.place DESC LIMIT :num_rows"  # noqa: S608


def make_plan(wanted: SessionFilter, words: Sequence[str]) -> Plan | None:
    """The plan for a filter whose text has these words; None where nothing can be wanted."""
    if wanted.text is not None and not words:
        return None
    clients = _clients(wanted)
    if clients is not None and not clients:
        return None
    builder = _Builder()
    for word in words:
        builder.add_list([word])
    _add_conditions(builder, wanted, clients)
    listed = clients if clients is not None and len(clients) <= MAX_MERGED_CLIENTS else None
    marks, is_exact = _marks(wanted)
    for mark in marks:
        builder.add_list([label(mark)] if listed is None else [label(mark, client) for client in listed])
    if listed is not None and not marks:
        builder.add_list([label("client", client) for client in listed])
    if wanted.user_id is not None:
        builder.add_list([label("user", wanted.user_id)])
    if wanted.model is not None:
        builder.add_list([label("model", wanted.model)])
    is_exact = is_exact and listed == clients and not wanted.hidden_clients and len(builder.lists) <= 1
    return Plan(builder.lists, len(words), builder.conditions, builder.parameters, is_exact)


class _Builder:
    """Gives each value a parameter."""

    def __init__(self) -> None:
        self.lists: list[list[str]] = []
        self.conditions: list[str] = []
        self.parameters: dict[str, str | int] = {}

    def add_list(self, terms: Sequence[str]) -> None:
        self.lists.append([self.parameter(term) for term in terms])

    def add_condition(self, condition: str, *values: str | int) -> None:
        self.conditions.append(condition.format(", ".join(f":{self.parameter(value)}" for value in values)))

    def add_is_any(self, column: str, values: Sequence[str]) -> None:
        # For MySQL's collations a name is the same with spaces behind it. Whose session it is must be told apart.
        names = [self.parameter(value) for value in values]
        is_one = (f"s.{column} = :{name} AND LENGTH(s.{column}) = LENGTH(:{name})" for name in names)
        self.conditions.append(f"({' OR '.join(is_one)})")

    def parameter(self, value: str | int) -> str:
        name = f"v{len(self.parameters)}"
        self.parameters[name] = value
        return name


def _clients(wanted: SessionFilter) -> list[str] | None:
    """Which digital humans' sessions may be found; None: anyone's, but for the hidden."""
    clients = wanted.clients
    if wanted.client_id is not None:
        clients = frozenset({wanted.client_id}) if clients is None else clients & {wanted.client_id}
    return None if clients is None else sorted(clients - wanted.hidden_clients)


def _add_conditions(builder: _Builder, wanted: SessionFilter, clients: list[str] | None) -> None:
    # Also of what the lists imply: whose session it is must not hang on a list's being right.
    if clients is not None:
        builder.add_is_any("client_id", clients)
    elif wanted.hidden_clients:
        builder.add_condition("s.client_id NOT IN ({})", *sorted(wanted.hidden_clients))
    for column, value in (("user_id", wanted.user_id), ("model", wanted.model), ("status", wanted.status)):
        if value is not None:
            builder.add_is_any(column, [value])
    match wanted.rating:
        case "up":
            builder.add_condition("s.num_up > 0")
        case "down":
            builder.add_condition("s.num_down > 0")
        case "none":
            builder.add_condition("s.num_up = 0 AND s.num_down = 0")
        case None:
            pass
    if wanted.has_errors:
        builder.add_condition("s.num_errors > 0")
    if wanted.has_interruptions:
        builder.add_condition("s.num_interruptions > 0")
    if wanted.min_first_token_ms is not None:
        builder.add_condition("s.max_first_token_ms >= {}", wanted.min_first_token_ms)


def _marks(wanted: SessionFilter) -> tuple[list[str], bool]:
    """The marks that every wanted session has, and whether they say all that is asked of marks."""
    marks: list[str] = []
    is_exact = True
    if wanted.rating == "none":
        is_exact = False
    elif wanted.rating is not None:
        marks.append(wanted.rating)
    if wanted.has_errors:
        marks.append("failed")
    if wanted.has_interruptions:
        marks.append("interrupted")
    if wanted.status == "ended":
        is_exact = False
    elif wanted.status is not None:
        marks.append(wanted.status)
    if wanted.min_first_token_ms is not None:
        steps = [step_ms for step_ms in SLOW_STEPS_MS if step_ms <= wanted.min_first_token_ms]
        marks += [f"slow{step_ms}" for step_ms in steps[-1:]]
        is_exact = is_exact and wanted.min_first_token_ms in steps
    return marks, is_exact
