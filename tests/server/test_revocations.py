"""What a process knows of revocations: whom they name, which connections hear of them, how they are followed and forgotten."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from server.auth import AuthError, Principal
from server.revocations import REASON, Revocations
from server.tokens import LEEWAY_S
from sessions.errors import StoreUnavailable
from sessions.revocation import Heard, Revocation
from sessions.sqlite_store import SqliteStore
from tests.virtual_time import run

NOW_S = 1_795_305_600
LONGEST_S = 7200


class Kept(SqliteStore):
    """A store of which only revocations are used: it can be away, and come back with what it had before. It gives two at once."""

    def __init__(self) -> None:
        super().__init__(Path("never-opened.db"))
        self.kept: list[Revocation] = []
        self.is_away = False
        self.num_refused = 0
        self.num_reads = 0
        self._news = asyncio.Event()

    def add(self, *revocations: Revocation) -> None:
        """Another node revokes these."""
        self.kept += revocations
        self._news.set()

    async def revoke(self, revocation: Revocation) -> None:
        if self.is_away or self.num_refused:
            self.num_refused = max(0, self.num_refused - 1)
            raise StoreUnavailable("the store is away")
        self.add(revocation)

    async def revocations(self, after: str, wait_s: float) -> Heard:
        self.num_reads += 1
        start = int(after or 0)
        is_anew = start == 0 or start > len(self.kept)
        start = 0 if is_anew else start
        if not self.is_away and start == len(self.kept):
            self._news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._news.wait()
        if self.is_away:
            raise StoreUnavailable("the store is away")
        found = self.kept[start : start + 2]
        return Heard(found, str(start + len(found)), is_anew)


class Connection:
    """Counts how often it is told."""

    def __init__(self) -> None:
        self.num_told = 0

    def revoked(self) -> None:
        self.num_told += 1


class Clock:
    """A wall clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = float(NOW_S)

    def __call__(self) -> float:
        return self.now_s


def make_principal(
    subject: str = "mia", token_id: str = "t1", *, issued_at: int = NOW_S, parent: str | None = None
) -> Principal:
    return Principal(subject, "user", frozenset(), "kiosk", NOW_S + 3600, token_id, issued_at, parent_token_id=parent)


def make_revocations(store: Kept | None = None, clock: Clock | None = None) -> Revocations:
    return Revocations(store or Kept(), longest_s=LONGEST_S, clock=clock or Clock())


def is_refused(revocations: Revocations, principal: Principal) -> bool:
    try:
        revocations.check(principal)
    except AuthError as refusal:
        told = (refusal.code, refusal.status, refusal.message)
    else:
        return False
    assert told == ("token_revoked", 401, REASON)
    return True


@asynccontextmanager
async def following(revocations: Revocations) -> AsyncIterator[None]:
    task = asyncio.create_task(revocations.follow())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_token_is_revoked_with_what_it_minted_and_no_other() -> None:
    revocations = make_revocations()

    await revocations.revoke_token("t1")

    assert is_refused(revocations, make_principal())
    assert is_refused(revocations, make_principal(token_id="ek", parent="t1"))
    assert not is_refused(revocations, make_principal(token_id="t2"))
    assert not is_refused(revocations, make_principal("t1", token_id="t2", parent="t3"))


async def test_a_client_secret_is_revoked_without_the_token_that_minted_it() -> None:
    revocations = make_revocations()

    await revocations.revoke_token("ek")

    assert is_refused(revocations, make_principal(token_id="ek", parent="t1"))
    assert not is_refused(revocations, make_principal())


async def test_a_user_loses_what_was_issued_up_to_that_second_and_may_have_new_tokens() -> None:
    revocations = make_revocations()

    await revocations.revoke_user("mia")

    assert is_refused(revocations, make_principal(issued_at=NOW_S))
    assert is_refused(revocations, make_principal(issued_at=NOW_S - 5000, token_id="ek", parent="t2"))
    assert not is_refused(revocations, make_principal(issued_at=NOW_S + 1))
    assert not is_refused(revocations, make_principal("tom", token_id="mia", issued_at=NOW_S))


async def test_an_older_revocation_of_a_user_takes_nothing_from_a_later_one() -> None:
    """Two nodes, whose clocks differ."""
    store = Kept()
    revocations = make_revocations(store)
    store.add(
        Revocation("user", "mia", NOW_S + 5, NOW_S + LONGEST_S),
        Revocation("user", "mia", NOW_S, NOW_S + LONGEST_S),
    )

    await revocations.load()

    assert is_refused(revocations, make_principal(issued_at=NOW_S + 5))


async def test_what_is_revoked_is_kept_for_as_long_as_a_token_may_live_or_this_one_does() -> None:
    store = Kept()
    revocations = make_revocations(store)

    told = [
        await revocations.revoke_user("mia"),
        await revocations.revoke_token("t1"),
        await revocations.revoke_token("t2", expires_at=NOW_S + 60),
        await revocations.revoke_token("t3", expires_at=NOW_S + 2 * LONGEST_S),
    ]

    longest_s = NOW_S + LONGEST_S + 2 * LEEWAY_S
    assert [one.kept_until_s for one in told] == [longest_s, longest_s, NOW_S + 60 + LEEWAY_S, longest_s]
    assert [one.issued_until_s for one in told] == [NOW_S] * 4
    assert store.kept == told


async def test_connections_that_a_revocation_names_are_told_once() -> None:
    revocations = make_revocations()
    named = [Connection() for _ in range(3)]
    others = [Connection() for _ in range(2)]
    revocations.watch(named[0], make_principal())
    revocations.watch(named[1], make_principal(token_id="ek", parent="t1"))
    revocations.watch(named[2], make_principal())
    revocations.watch(others[0], make_principal(token_id="t2"))
    revocations.watch(others[1], make_principal("tom", token_id="t3"))
    revocations.unwatch(named[2])  # it is gone, and cannot be told

    await revocations.revoke_token("t1")
    await revocations.revoke_token("t1")
    await revocations.revoke_token("t4")

    assert [connection.num_told for connection in (*named, *others)] == [1, 1, 0, 0, 0]


async def test_a_token_that_was_revoked_since_it_was_checked_opens_nothing() -> None:
    revocations = make_revocations()
    connection, late = Connection(), Connection()
    principal = make_principal()
    revocations.check(principal)
    await revocations.revoke_user("mia")

    revocations.watch(connection, principal)
    revocations.watch(late, make_principal(issued_at=NOW_S + 1))

    assert (connection.num_told, late.num_told) == (1, 0)


async def test_what_the_store_does_not_have_is_not_revoked() -> None:
    """P9."""
    store = Kept()
    revocations = make_revocations(store)
    connection = Connection()
    revocations.watch(connection, make_principal())
    store.is_away = True

    with pytest.raises(StoreUnavailable):
        await revocations.revoke_token("t1")

    assert not is_refused(revocations, make_principal())
    assert connection.num_told == 0


async def test_all_that_the_store_has_is_known_before_anyone_is_let_in() -> None:
    store = Kept()
    store.add(*(Revocation("token", f"t{number}", NOW_S, NOW_S + 60) for number in range(5)))
    revocations = make_revocations(store)

    await revocations.load()
    num_reads = store.num_reads

    assert [is_refused(revocations, make_principal(token_id=f"t{number}")) for number in range(6)] == [True] * 5 + [
        False
    ]
    assert store.num_reads == num_reads  # to ask costs no round trip


async def test_a_store_that_is_away_at_the_start_says_so() -> None:
    store = Kept()
    store.is_away = True

    with pytest.raises(StoreUnavailable):
        await make_revocations(store).load()


def test_what_another_node_revokes_is_told_here() -> None:
    async def scenario() -> None:
        store = Kept()
        revocations = make_revocations(store)
        connection = Connection()
        revocations.watch(connection, make_principal())
        async with following(revocations):
            await asyncio.sleep(100)

            store.add(Revocation("token", "t1", NOW_S, NOW_S + 60))
            await asyncio.sleep(0.1)

            assert (connection.num_told, is_refused(revocations, make_principal())) == (1, True)

    run(scenario())


def test_while_the_store_is_away_what_is_known_holds_and_afterwards_nothing_was_missed() -> None:
    """P9: it is said once."""

    async def scenario() -> None:
        store = Kept()
        revocations = make_revocations(store)
        with capture_logs() as logs:
            async with following(revocations):
                store.add(Revocation("token", "t1", NOW_S, NOW_S + 60))
                await asyncio.sleep(5)
                store.is_away = True
                await asyncio.sleep(60)
                store.kept.append(Revocation("token", "t2", NOW_S, NOW_S + 60))
                assert is_refused(revocations, make_principal())
                assert not is_refused(revocations, make_principal(token_id="t2"))

                store.is_away = False
                await asyncio.sleep(1)

                assert is_refused(revocations, make_principal(token_id="t2"))
                store.is_away = True
                await asyncio.sleep(60)
        assert [log["event"] for log in logs] == ["revocations.not_followed"] * 2

    run(scenario())


def test_what_is_due_is_forgotten_and_what_was_revoked_again_is_not() -> None:
    async def scenario() -> None:
        store, clock = Kept(), Clock()
        revocations = make_revocations(store, clock)
        store.add(
            Revocation("token", "t1", NOW_S, NOW_S + 60),
            Revocation("token", "t2", NOW_S, NOW_S + 60),
            Revocation("token", "t2", NOW_S, NOW_S + 600),
            Revocation("user", "mia", NOW_S, NOW_S + 60),
        )
        async with following(revocations):
            await asyncio.sleep(5)
            assert is_refused(revocations, make_principal(token_id="t3"))

            clock.now_s += 61
            await asyncio.sleep(5)

            refused = [is_refused(revocations, make_principal(token_id=name)) for name in ("t1", "t2", "t3")]
            assert refused == [False, True, False]
            clock.now_s += 600
            await asyncio.sleep(5)
            assert (revocations._known, revocations._due) == ({}, [])

    run(scenario())


def test_what_a_store_lost_is_given_back_as_long_as_it_is_not_due() -> None:
    """P9: a node that starts later asks the store alone."""

    async def scenario() -> None:
        store, clock = Kept(), Clock()
        revocations = make_revocations(store, clock)
        kept = Revocation("token", "t1", NOW_S, NOW_S + 600)
        lost = [Revocation("user", "mia", NOW_S, NOW_S + 600), Revocation("token", "t2", NOW_S, NOW_S + 600)]
        due = Revocation("token", "t3", NOW_S, NOW_S + 60)
        more = Revocation("token", "t4", NOW_S, NOW_S + 600)
        store.add(kept, Revocation("token", "t4", NOW_S, NOW_S + 60), due, more, *lost)
        async with following(revocations):
            await asyncio.sleep(5)
            clock.now_s += 61
            store.is_away = True
            await asyncio.sleep(5)
            del store.kept[2:]
            store.is_away = False
            await asyncio.sleep(5)

            assert store.kept[2:] == [more, *lost]
            await asyncio.sleep(5)
            assert len(store.kept) == 5

    run(scenario())


def test_what_could_not_be_given_back_is_given_back_later() -> None:
    async def scenario() -> None:
        store = Kept()
        revocations = make_revocations(store)
        lost = [Revocation("token", f"t{number}", NOW_S, NOW_S + 600) for number in range(3)]
        store.add(*lost)
        async with following(revocations):
            await asyncio.sleep(5)
            store.kept.clear()
            store.num_refused = 2
            await asyncio.sleep(10)

            assert sorted(store.kept, key=lambda one: one.name) == lost
            del store.kept[1:]
            await asyncio.sleep(10)
            assert sorted(store.kept, key=lambda one: one.name) == lost
            store.kept.clear()
            await asyncio.sleep(10)
            assert sorted(store.kept, key=lambda one: one.name) == lost

    run(scenario())


def test_a_store_that_tells_all_again_tells_nobody_twice() -> None:
    """As one does that came back older."""

    async def scenario() -> None:
        store = Kept()
        revocations = make_revocations(store)
        again = Revocation("token", "t1", NOW_S, NOW_S + 60)
        async with following(revocations):
            for _ in range(1000):
                store.add(again)
            await asyncio.sleep(5)

            assert len(revocations._due) == 1

    run(scenario())
