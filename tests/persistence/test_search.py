"""Searches: what they find is what there is, page by page, from whatever list they walk down; and no plan reads a whole table."""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from persistence.database import Database
from persistence.derived import replace_derived
from persistence.masking import unmasked
from persistence.places import created_ms_of, place_of
from persistence.rollups import overview
from persistence.search import SessionFilter, SessionPage, find_sessions
from persistence.search_plan import MAX_MERGED_CLIENTS
from persistence.snippets import pack_text, snippet, unpack_text
from persistence.summaries import AnswerFacts, DialogueFacts, Digest, SessionFacts, TurnFacts, digest
from persistence.terms import MAX_QUERY_TERMS, bounded, query_words, words_of
from tests.persistence.builders import CREATED_MS, new_id
from tests.plans import statements_of, unbounded_steps

DAY_MS = 24 * 3600 * 1000
USERS, CLIENTS, MODELS = ("anna", "bo", "안나"), ("kiosk", "museum", "bank"), ("demo", "other")
WORDS = ("hallo", "Straße", "물을", "주세요", "東京", "no", "yes", "<b>", "100%")
SPAN_MS = 30 * DAY_MS


def make_dialogue(r: random.Random, **changes: Any) -> DialogueFacts:
    """Any session, with few words and often the same ones."""
    created_ms = CREATED_MS - r.randrange(SPAN_MS)
    session = SessionFacts(
        session_id=new_id("sess"),
        user_id=r.choice(USERS),
        client_id=r.choice(CLIENTS),
        model=r.choice(MODELS),
        status=r.choice(("active", "idle", "ended", "ended", "ended")),
        created_ms=created_ms,
        updated_ms=created_ms + 1000,
        ended_ms=None,
    )
    return DialogueFacts(
        msgspec.structs.replace(session, **changes),
        [TurnFacts(" ".join(r.choices(WORDS, k=2)), created_ms + i) for i in range(r.randrange(3))],
        [
            AnswerFacts(
                model="demo",
                status=r.choice(("completed", "completed", "failed", "cancelled")),
                text=" ".join(r.choices(WORDS, k=3)),
                created_ms=created_ms + i,
                first_token_ms=created_ms + i + r.choice((20, 300, 700, 5000)),
                num_up=int(r.random() < 0.1),
                num_down=int(r.random() < 0.1),
            )
            for i in range(r.randrange(3))
        ],
    )


async def store(database: Database, dialogues: Sequence[DialogueFacts]) -> list[Digest]:
    """As the summarizer does; newest first."""
    digests = [digest(facts, unmasked) for facts in dialogues]
    async with database.transaction() as connection:
        await replace_derived(
            connection, {each.summary.session_id: each for each in digests}, is_mysql=database.is_mysql
        )
    return sorted(digests, key=lambda each: -place_of(each.summary.session_id, each.summary.created_ms))


def is_wanted(found: Digest, wanted: SessionFilter) -> bool:
    """What the filter says of a session, without any list."""
    summary, text = found.summary, wanted.text
    return (
        all(
            value is None or getattr(summary, name) == value
            for name, value in (
                ("user_id", wanted.user_id),
                ("client_id", wanted.client_id),
                ("model", wanted.model),
                ("status", wanted.status),
            )
        )
        and (wanted.clients is None or summary.client_id in wanted.clients)
        and summary.client_id not in wanted.hidden_clients
        and (wanted.from_ms or 0) <= summary.created_ms
        and (wanted.to_ms is None or summary.created_ms < wanted.to_ms)
        and (wanted.min_first_token_ms is None or (summary.max_first_token_ms or -1) >= wanted.min_first_token_ms)
        and not (wanted.has_errors and not summary.num_errors)
        and not (wanted.has_interruptions and not summary.num_interruptions)
        and {
            "up": summary.num_up > 0,
            "down": summary.num_down > 0,
            "none": not summary.num_up and not summary.num_down,
            None: True,
        }[wanted.rating]
        and (text is None or (bool(query_words(text)) and set(query_words(text)) <= words_of(found.text)))
    )


def filters() -> st.SearchStrategy[SessionFilter]:
    def maybe(*values: Any) -> st.SearchStrategy[Any]:
        return st.none() | st.sampled_from(values)

    times = st.integers(CREATED_MS - SPAN_MS, CREATED_MS)
    many = frozenset(CLIENTS) | {f"client-{number}" for number in range(MAX_MERGED_CLIENTS)}
    return st.builds(
        SessionFilter,
        user_id=maybe(*USERS),
        client_id=maybe(*CLIENTS),
        model=maybe(*MODELS),
        status=maybe("active", "idle", "ended"),
        rating=maybe("up", "down", "none"),
        text=maybe("hallo", "STRASSE", "물", "주세요 물", "東京 no yes", "nobody", "…", "京"),
        from_ms=st.none() | times,
        to_ms=st.none() | times,
        min_first_token_ms=maybe(10, 250, 400, 1000, 6000),
        has_errors=st.booleans(),
        has_interruptions=st.booleans(),
        clients=maybe(frozenset(), frozenset({"bank"}), frozenset({"bank", "kiosk"}), many),
        hidden_clients=st.sampled_from((frozenset(), frozenset({"bank"}), frozenset({"museum", "none"}))),
    )


async def all_pages(
    database: Database, wanted: SessionFilter, limit: int, clock_s: Iterator[float]
) -> list[SessionPage]:
    pages = [await find_sessions(database, wanted, limit=limit, clock_s=clock_s.__next__)]
    while pages[-1].next is not None:
        pages.append(await find_sessions(database, wanted, after=pages[-1].next, limit=limit, clock_s=clock_s.__next__))
    return pages


# For the first SQLite once guessed that no row is left to be sorted; the other sets all that there is.
SORTED_BY_SQLITE = SessionFilter(
    model="demo",
    status="active",
    rating="none",
    text="주세요 물",
    min_first_token_ms=10,
    has_errors=True,
    has_interruptions=True,
    hidden_clients=frozenset({"bank"}),
)
EVERYTHING = SessionFilter(
    user_id="anna",
    client_id="kiosk",
    model="demo",
    status="ended",
    rating="none",
    text="주세요 물",
    from_ms=1,
    to_ms=CREATED_MS,
    min_first_token_ms=11,
    has_errors=True,
    has_interruptions=True,
    clients=frozenset({"kiosk", "desk"}),
    hidden_clients=frozenset({"bank"}),
)
# A clock that stands still, and one by which the time is always over.
CLOCKS: dict[str, Callable[[], Iterator[float]]] = {
    "endless": lambda: itertools.repeat(0.0),
    "impatient": lambda: map(float, itertools.count()),
}


class Stored(list[Digest]):
    """Sessions, newest first. Short to print."""

    def __repr__(self) -> str:
        return f"<{len(self)} sessions>"


@pytest.fixture
async def stored(database: Database) -> Stored:
    """Some sessions."""
    r = random.Random(7)
    return Stored(await store(database, [make_dialogue(r) for _ in range(150)]))


@pytest.mark.parametrize("clock", CLOCKS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(wanted=filters(), limit=st.integers(1, 30))
async def test_pages_together_are_all_that_is_wanted_newest_first(
    database: Database, stored: Stored, clock: str, wanted: SessionFilter, limit: int
) -> None:
    """Whatever is asked for, whichever list is walked down, wherever a page ends, and also if the time is over after each round."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("persistence.search._FIRST_DEPTH", 7)
        pages = await all_pages(database, wanted, limit, CLOCKS[clock]())

    expected = [each.summary for each in stored if is_wanted(each, wanted)]
    found = [msgspec.structs.replace(each, snippet=None) for page in pages for each in page.data]
    assert found == expected
    assert all(len(page.data) == limit for page in pages[:-1] if page.searched_to_ms is None)
    assert all(page.next is not None for page in pages if page.searched_to_ms is not None)
    for page, after in itertools.pairwise(pages):
        if page.searched_to_ms is not None:
            assert all(each.created_ms <= page.searched_to_ms for each in after.data)


async def test_names_that_differ_by_a_space_are_of_different_people(database: Database) -> None:
    """P7: for MySQL's collations they would be the same."""
    r = random.Random(3)
    dialogues = [
        make_dialogue(r, user_id=f"anna{tail}", client_id=f"kiosk{tail}", model=f"demo{tail}")
        for tail in ("", " ", "  ")
    ]
    await store(database, dialogues)

    for facts in dialogues:
        session = facts.session
        for wanted in (
            SessionFilter(user_id=session.user_id),
            SessionFilter(clients=frozenset({session.client_id, "bank"})),
        ):
            page = await find_sessions(database, wanted)

            assert [each.session_id for each in page.data] == [session.session_id]
    for nobody in ("kiosk   ", "* "):
        assert await overview(database, from_ms=0, to_ms=CREATED_MS, clients=frozenset({nobody})) == []


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(wanted=filters())
@example(wanted=SORTED_BY_SQLITE)
@example(wanted=EVERYTHING)
async def test_no_plan_reads_a_whole_table(database: Database, stored: Stored, wanted: SessionFilter) -> None:
    statements = await statements_of(database, lambda: find_sessions(database, wanted))

    for statement in statements:
        assert await unbounded_steps(database, statement) == []


async def test_a_search_that_ran_out_of_time_says_how_far_it_has_looked(
    database: Database, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P9: what was not looked at does not pass for what is not there."""
    monkeypatch.setattr("persistence.search._FIRST_DEPTH", 10)
    wanted = SessionFilter(rating="none", status="ended", min_first_token_ms=1)

    page = await find_sessions(database, wanted, clock_s=CLOCKS["impatient"]().__next__)

    assert page.next is not None
    assert page.searched_to_ms == created_ms_of(page.next) == stored[10].summary.created_ms
    assert [each.session_id for each in page.data] == [
        each.summary.session_id for each in stored[:10] if is_wanted(each, wanted)
    ]


async def test_a_found_session_shows_where_it_was_said(database: Database) -> None:
    r = random.Random(1)
    facts = make_dialogue(r)
    long = "vorher " * 50 + "Wo ist die STRASSE <b> nach " + "nachher " * 50
    await store(database, [DialogueFacts(facts.session, [TurnFacts(long, facts.session.created_ms)], [])])

    page = await find_sessions(database, SessionFilter(text="strasse wo"))

    (found,) = page.data
    assert found.snippet is not None
    assert "Wo ist die STRASSE <b> nach" in found.snippet
    assert found.snippet.startswith("…")
    assert found.snippet.endswith("…")


async def test_days_are_summed_over_what_one_may_see(database: Database) -> None:
    stored = await store(database, [make_dialogue(random.Random(number)) for number in range(60)])
    for clients, hidden in ((None, ()), (None, ("bank",)), (("kiosk", "bank"), ("bank",)), ((), ())):
        found = await overview(
            database,
            from_ms=CREATED_MS - 2 * SPAN_MS,
            to_ms=CREATED_MS + DAY_MS,
            clients=None if clients is None else frozenset(clients),
            hidden_clients=frozenset(hidden),
        )

        seen = [
            share
            for each in stored
            for share in each.shares
            if (clients is None or share.client_id in clients) and share.client_id not in hidden
        ]
        assert {(day.day, day.model) for day in found} == {(share.day, share.model) for share in seen}
        for name in ("num_sessions", "num_answers", "num_up", "num_down", "num_errors", "num_interruptions"):
            assert sum(getattr(day, name) for day in found) == sum(getattr(share, name) for share in seen)
        assert [(day.day, day.model) for day in found] == sorted((day.day, day.model) for day in found)


def test_words_are_found_however_they_are_written() -> None:
    for said, asked in (
        ("Wie heißt DU?", "HEISST du"),
        ("ｆｕｌｌ　ｗｉｄｔｈ ﬁne", "full width fine"),
        ("학교에서 물을 마셔요", "학교"),
        ("학교에서 물을 마셔요", "물"),
        ("\u1112\u1161\u11a8\u1100\u116d", "학교"),
        ("東京タワーへ行く", "タワー"),
        ("東京タワーへ行く", "行"),
        ("สวัสดีครับ", "สวัสดี"),
        ("हिन्दी भाषा", "हिन्दी"),
        ("a_b-c.d", "a b c d"),
    ):
        assert set(query_words(asked)) <= words_of(said), asked
    assert not set(query_words("교실")) <= words_of("학교에서")
    assert query_words("… !?") == []


@given(st.text(max_size=200))
def test_every_text_is_found_by_itself(text: str) -> None:
    assert set(query_words(text)) <= words_of(text)
    assert all(len(word) <= 64 and "=" not in word for word in words_of(text))
    assert len(query_words(text)) <= MAX_QUERY_TERMS
    assert unpack_text(pack_text(text)) == text


@given(st.text(min_size=1), st.text(min_size=1))
def test_terms_that_are_too_long_stay_apart(one: str, other: str) -> None:
    long = [bounded("x" * 60 + each) for each in (one, other)]

    assert all(len(each) <= 64 for each in long)
    assert (long[0] == long[1]) == (one == other)


@given(st.text(max_size=300), st.text(max_size=20))
def test_a_snippet_is_a_short_piece_of_the_text(text: str, query: str) -> None:
    found = snippet(text, query)

    assert found is None or (len(found) <= 202 and found.strip("…") in " ".join(text.split()))
