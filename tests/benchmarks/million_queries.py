"""What a console asks of many sessions: each kind of question as a call of the API, with parameters drawn anew each time."""

import random
from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct

from persistence.feedback import FeedbackPlace
from persistence.places import first_place
from server.access import ALL_CLIENTS_SCOPE
from server.api.cursor import encode_cursor
from server.auth import Role
from tests.benchmarks.million_data import MODELS, NEWEST_MS, NUM_CLIENTS, SPAN_MS, UNFAILING
from tests.benchmarks.million_load import Loaded
from tests.benchmarks.million_words import NUM_LATIN

DAY_MS: Final = 24 * 3600 * 1000
# The server that is asked is told that all of them are private: so support sees those that its token names, and `client:*` the others.
CLIENTS: Final = tuple(f"client-{number:02}" for number in range(1, NUM_CLIENTS))

_Query = Mapping[str, str | int | bool]


class Call(Struct, frozen=True):
    """One GET: what is asked for, and by whom."""

    path: str
    query: _Query = {}
    role: Role = "admin"
    user_id: str | None = None
    client_id: str = "desk"
    scopes: frozenset[str] = frozenset()


# Draws the parameters.
Question = Callable[[random.Random], Call]


def questions(loaded: Loaded) -> dict[str, Question]:
    """Each kind of question by what it filters by."""
    searches: dict[str, Callable[[random.Random], _Query]] = {
        "nothing": lambda _: {},
        "days": lambda r: _days(r) | {"client": _client(r)},
        "user": lambda r: {"user": _user(r, loaded)},
        "client": lambda r: {"client": _client(r)},
        "model": lambda r: {"model": r.choice(MODELS)},
        "status": lambda r: {"status": r.choice(["active", "idle", "ended"])},
        "up": lambda _: {"rating": "up"},
        "down": lambda _: {"rating": "down"},
        "not rated": lambda _: {"rating": "none"},
        "errors": lambda _: {"has_errors": True},
        "interruptions": lambda _: {"has_interruptions": True},
        "slow": lambda r: {"min_first_token_ms": r.randrange(300, 3000)},
        "client, down": lambda r: {"client": _client(r), "rating": "down"},
        "client, errors": lambda r: {"client": _client(r), "has_errors": True},
        "client, model": lambda r: {"client": _client(r), "model": r.choice(MODELS)},
        "client, user": lambda r: {"client": _client(r), "user": _user(r, loaded)},
        "model, down": lambda r: {"model": r.choice(MODELS), "rating": "down"},
        "model, errors, interruptions": lambda r: {
            "model": r.choice(MODELS),
            "has_errors": True,
            "has_interruptions": True,
        },
        "model, user, slow": lambda r: {
            "model": r.choice(MODELS),
            "user": _user(r, loaded),
            "min_first_token_ms": r.randrange(300, 3000),
        },
        "client, errors: none": lambda _: {"client": UNFAILING, "has_errors": True},
        "common word": lambda r: {"text": _word(r, loaded, 1, 100)},
        "word": lambda r: {"text": _word(r, loaded, 100, 5000)},
        "rare word": lambda r: {"text": _word(r, loaded, 5000, 30_000)},
        "two common words": lambda r: {"text": _words(r, loaded, (1, 100), (1, 100))},
        "common and rare word": lambda r: {"text": _words(r, loaded, (1, 100), (5000, 30_000))},
        "three words": lambda r: {"text": _words(r, loaded, (1, 50), (20, 200), (100, 1000))},
        "words that never meet": lambda _: {"text": f"{loaded.words[0]} {loaded.words[NUM_LATIN]}"},
        "word, client": lambda r: {"text": _word(r, loaded, 1, 5000), "client": _client(r)},
        "word, down": lambda r: {"text": _word(r, loaded, 1, 5000), "rating": "down"},
        "word, user": lambda r: {"text": _word(r, loaded, 1, 5000), "user": _user(r, loaded)},
    }
    asked: dict[str, Question] = {name: _search(make) for name, make in searches.items()}
    return asked | {
        "three clients": lambda r: _of_clients(_search(lambda _: {})(r), _clients(r, 3)),
        "three clients, down": lambda r: _of_clients(_search(lambda _: {"rating": "down"})(r), _clients(r, 3)),
        "eighteen clients, errors": lambda r: _of_clients(
            _search(lambda _: {"has_errors": True})(r), _clients(r, NUM_CLIENTS - 2)
        ),
        "word, three clients": lambda r: _of_clients(
            _search(lambda r: {"text": _word(r, loaded, 1, 5000)})(r), _clients(r, 3)
        ),
        "all clients but two": lambda r: _but_clients(_search(lambda _: {})(r), _clients(r, 2)),
        "one's own": lambda r: Call("/v1/sessions", role="user", user_id=_user(r, loaded)),
        "overview, 30 days": lambda _: _overview(30),
        "overview, 90 days": lambda _: _overview(90),
        "overview, 30 days, three clients": lambda r: _of_clients(_overview(30), _clients(r, 3)),
        "a session": lambda r: Call(f"/v1/sessions/{r.choice(loaded.session_ids)}"),
        "feedback": lambda r: _feedback(r, {}),
        "feedback, days": lambda r: _feedback(r, {name.removesuffix("_ms"): at for name, at in _days(r).items()}),
        "feedback, down": lambda r: _feedback(r, {"rating": "down"}),
        "feedback, user": lambda r: _feedback(r, {"user_id": _user(r, loaded)}),
        "feedback, session": lambda r: _feedback(r, {"session_id": r.choice(loaded.session_ids)}),
        "feedback, model, down": lambda r: _feedback(r, {"model": r.choice(MODELS), "rating": "down"}),
        "feedback, three clients": lambda r: _of_clients(_feedback(r, {}), _clients(r, 3)),
        "audit": lambda _: Call("/v1/audit"),
        "audit, actor": lambda r: Call("/v1/audit", {"actor": f"ann-{r.randrange(20)}"}),
        "audit, action": lambda r: Call("/v1/audit", {"action": r.choice(["session.search", "session.view"])}),
        "audit, session": lambda r: Call("/v1/audit", {"session_id": r.choice(loaded.session_ids)}),
    }


def _search(make: Callable[[random.Random], _Query]) -> Question:
    def ask(r: random.Random) -> Call:
        # Half of the pages are first ones, the others anywhere.
        place = None if r.random() < 0.5 else first_place(NEWEST_MS - r.randrange(SPAN_MS))
        after = {} if place is None else {"after": encode_cursor(place, of="sessions")}
        return Call("/v1/sessions", {**make(r), **after})

    return ask


def _feedback(r: random.Random, query: _Query) -> Call:
    place = None if r.random() < 0.5 else FeedbackPlace(NEWEST_MS - r.randrange(SPAN_MS), "fb_")
    after = {} if place is None else {"after": encode_cursor(place, of="feedback")}
    return Call("/v1/feedback", {**query, **after})


def _overview(num_days: int) -> Call:
    return Call("/v1/overview", {"from_ms": NEWEST_MS - num_days * DAY_MS, "to_ms": NEWEST_MS})


def _of_clients(call: Call, clients: frozenset[str]) -> Call:
    """The same, by a supporter who works for these digital humans alone."""
    scopes = frozenset(f"client:{client}" for client in clients)
    return Call(call.path, call.query, role="support", client_id=min(clients), scopes=scopes)


def _but_clients(call: Call, hidden: frozenset[str]) -> Call:
    """The same, by a supporter who works for all but these."""
    named = frozenset(f"client:{client}" for client in CLIENTS if client not in hidden)
    return Call(call.path, call.query, role="support", scopes=named | {ALL_CLIENTS_SCOPE})


def _days(r: random.Random) -> dict[str, str | int | bool]:
    from_ms = NEWEST_MS - r.randrange(SPAN_MS)
    return {"from_ms": from_ms, "to_ms": from_ms + r.randrange(1, 30) * DAY_MS}


def _user(r: random.Random, loaded: Loaded) -> str:
    # As they talk: those who talk much are asked for more.
    return f"user-{int(loaded.num_users ** r.random())}"


def _client(r: random.Random) -> str:
    return r.choice(CLIENTS)


def _clients(r: random.Random, number: int) -> frozenset[str]:
    return frozenset(r.sample(CLIENTS, number))


def _word(r: random.Random, loaded: Loaded, first: int, last: int) -> str:
    """A word of this rank in its language: three in ten are Korean, and every second of those is asked for without its particle."""
    word = loaded.words[r.randrange(first, last) + (NUM_LATIN if r.random() < 0.3 else 0) - 1]
    return word[:2] if "가" <= word[0] <= "힣" and r.random() < 0.5 else word


def _words(r: random.Random, loaded: Loaded, *ranks: tuple[int, int]) -> str:
    language = NUM_LATIN if r.random() < 0.3 else 0
    return " ".join(loaded.words[r.randrange(first, last) + language - 1] for first, last in ranks)
