"""What a console asks of many sessions: each kind of question, with parameters drawn anew each time."""

import random
from collections.abc import Awaitable, Callable
from typing import Final

from persistence.database import Database
from persistence.places import first_place
from persistence.rollups import overview
from persistence.search import SessionFilter, find_sessions
from tests.benchmarks.million_data import MODELS, NEWEST_MS, SPAN_MS, UNFAILING
from tests.benchmarks.million_load import Loaded
from tests.benchmarks.million_words import NUM_LATIN

DAY_MS: Final = 24 * 3600 * 1000

# Asks once; whether what came was the whole of what there is or a full page, and not the part that there was time for.
Question = Callable[[Database, random.Random], Awaitable[bool]]


def questions(loaded: Loaded) -> dict[str, Question]:
    """Each kind of question by what it filters by."""
    filters: dict[str, Callable[[random.Random], SessionFilter]] = {
        "nothing": lambda _: SessionFilter(),
        "days": lambda r: _days(r),
        "user": lambda r: SessionFilter(user_id=_user(r, loaded)),
        "client": lambda r: SessionFilter(client_id=_client(r)),
        "model": lambda r: SessionFilter(model=r.choice(MODELS)),
        "status": lambda r: SessionFilter(status=r.choice(["active", "idle", "ended"])),
        "up": lambda _: SessionFilter(rating="up"),
        "down": lambda _: SessionFilter(rating="down"),
        "not rated": lambda _: SessionFilter(rating="none"),
        "errors": lambda _: SessionFilter(has_errors=True),
        "interruptions": lambda _: SessionFilter(has_interruptions=True),
        "slow": lambda r: SessionFilter(min_first_token_ms=r.randrange(300, 3000)),
        "client, down": lambda r: SessionFilter(client_id=_client(r), rating="down"),
        "client, errors": lambda r: SessionFilter(client_id=_client(r), has_errors=True),
        "client, model": lambda r: SessionFilter(client_id=_client(r), model=r.choice(MODELS)),
        "client, user": lambda r: SessionFilter(client_id=_client(r), user_id=_user(r, loaded)),
        "model, down": lambda r: SessionFilter(model=r.choice(MODELS), rating="down"),
        "model, errors, interruptions": lambda r: SessionFilter(
            model=r.choice(MODELS), has_errors=True, has_interruptions=True
        ),
        "model, user, slow": lambda r: SessionFilter(
            model=r.choice(MODELS), user_id=_user(r, loaded), min_first_token_ms=r.randrange(300, 3000)
        ),
        "client, errors: none": lambda _: SessionFilter(client_id=UNFAILING, has_errors=True),
        "three clients": lambda r: SessionFilter(clients=_clients(r, 3)),
        "three clients, down": lambda r: SessionFilter(clients=_clients(r, 3), rating="down"),
        "eighteen clients, errors": lambda r: SessionFilter(clients=_clients(r, 18), has_errors=True),
        "all clients but two": lambda r: SessionFilter(hidden_clients=_clients(r, 2)),
        "common word": lambda r: SessionFilter(text=_word(r, loaded, 1, 100)),
        "word": lambda r: SessionFilter(text=_word(r, loaded, 100, 5000)),
        "rare word": lambda r: SessionFilter(text=_word(r, loaded, 5000, 30_000)),
        "two common words": lambda r: SessionFilter(text=_words(r, loaded, (1, 100), (1, 100))),
        "common and rare word": lambda r: SessionFilter(text=_words(r, loaded, (1, 100), (5000, 30_000))),
        "three words": lambda r: SessionFilter(text=_words(r, loaded, (1, 50), (20, 200), (100, 1000))),
        "words that never meet": lambda _: SessionFilter(text=f"{loaded.words[0]} {loaded.words[NUM_LATIN]}"),
        "word, client": lambda r: SessionFilter(text=_word(r, loaded, 1, 5000), client_id=_client(r)),
        "word, down": lambda r: SessionFilter(text=_word(r, loaded, 1, 5000), rating="down"),
        "word, user": lambda r: SessionFilter(text=_word(r, loaded, 1, 5000), user_id=_user(r, loaded)),
        "word, three clients": lambda r: SessionFilter(text=_word(r, loaded, 1, 5000), clients=_clients(r, 3)),
    }
    asked: dict[str, Question] = {name: _finding(make) for name, make in filters.items()}
    return asked | {
        "overview, 30 days": _overview(30),
        "overview, 90 days": _overview(90),
        "overview, 30 days, three clients": _overview(30, num_clients=3),
    }


def _finding(make: Callable[[random.Random], SessionFilter]) -> Question:
    async def ask(database: Database, r: random.Random) -> bool:
        # Half of the pages are first ones, the others anywhere.
        after = None if r.random() < 0.5 else first_place(NEWEST_MS - r.randrange(SPAN_MS))
        page = await find_sessions(database, make(r), after=after)
        return page.searched_to_ms is None

    return ask


def _overview(num_days: int, num_clients: int = 0) -> Question:
    async def ask(database: Database, r: random.Random) -> bool:
        clients = _clients(r, num_clients) if num_clients else None
        found = await overview(database, from_ms=NEWEST_MS - num_days * DAY_MS, to_ms=NEWEST_MS, clients=clients)
        return bool(found)

    return ask


def _days(r: random.Random) -> SessionFilter:
    from_ms = NEWEST_MS - r.randrange(SPAN_MS)
    return SessionFilter(from_ms=from_ms, to_ms=from_ms + r.randrange(30) * DAY_MS, client_id=_client(r))


def _user(r: random.Random, loaded: Loaded) -> str:
    # As they talk: those who talk much are asked for more.
    return f"user-{int(loaded.num_users ** r.random())}"


def _client(r: random.Random) -> str:
    return f"client-{r.randrange(1, 20):02}"


def _clients(r: random.Random, number: int) -> frozenset[str]:
    return frozenset(f"client-{number:02}" for number in r.sample(range(1, 20), number))


def _word(r: random.Random, loaded: Loaded, first: int, last: int) -> str:
    """A word of this rank in its language: three in ten are Korean, and every second of those is asked for without its particle."""
    word = loaded.words[r.randrange(first, last) + (NUM_LATIN if r.random() < 0.3 else 0) - 1]
    return word[:2] if "가" <= word[0] <= "힣" and r.random() < 0.5 else word


def _words(r: random.Random, loaded: Loaded, *ranks: tuple[int, int]) -> str:
    language = NUM_LATIN if r.random() < 0.3 else 0
    return " ".join(loaded.words[r.randrange(first, last) + language - 1] for first, last in ranks)
