"""Liveness and readiness: which part does not work and whether that matters, without secrets, for one check a second. P9."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import httpx
import pytest
from starlette.applications import Starlette

import server.health
from server.health import Check, Health, Readiness, health_routes
from sessions.errors import StoreUnavailable
from sessions.store import OutboxLag


def answers(reason: str | None) -> Check:
    async def check() -> str | None:
        return reason

    return check


async def breaks() -> str | None:
    raise ConnectionError("password=hunter2 at 10.0.0.1")


async def hangs() -> str | None:
    await asyncio.Event().wait()
    return None


class Counted:
    """A check that counts its calls and waits for nothing."""

    def __init__(self) -> None:
        self.num_calls = 0

    async def __call__(self) -> str | None:
        self.num_calls += 1
        return None


def make_health(
    checks: Mapping[str, Check],
    *,
    is_draining: bool = False,
    lag: Callable[[], Awaitable[OutboxLag]] | None = None,
) -> Health:
    return Health(checks, build_id="b1", is_draining=lambda: is_draining, num_sessions=lambda: 3, lag=lag)


async def get(health: Health, path: str) -> httpx.Response:
    app = Starlette(routes=health_routes(lambda request: health))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.get(path)


async def test_a_node_whose_parts_all_work_is_ready() -> None:
    response = await get(make_health({"store": answers(None), "engine": answers(None)}), "/readyz")

    assert response.status_code == 200
    assert response.json() == {
        "status": "ok",
        "build": "b1",
        "checks": {"store": "ok", "engine": "ok"},
        "num_sessions": 3,
        "outbox": None,
    }
    assert response.headers["cache-control"] == "no-store"


async def test_one_part_that_does_not_work_is_named_and_the_others_are_not_blamed() -> None:
    response = await get(make_health({"store": answers(None), "engine": answers("no GPU")}), "/readyz")

    assert response.status_code == 503
    assert response.json()["checks"] == {"store": "ok", "engine": "no GPU"}
    assert response.json()["status"] == "unavailable"


@pytest.mark.parametrize("away", [["database"], ["archive"], ["writer"], ["database", "archive", "writer"]])
async def test_a_node_that_lacks_only_what_stores_is_degraded_and_still_ready(away: list[str]) -> None:
    """P9: conversations go on, and the answer says what is away."""
    checks = {part: answers(None) for part in ("engine", "store", "journal", "database", "archive", "writer")}

    response = await get(make_health(checks | {part: answers("away") for part in away}), "/readyz")

    body = response.json()
    assert (response.status_code, body["status"], body["build"]) == (200, "degraded", "b1")
    assert {part for part, said in body["checks"].items() if said == "away"} == set(away)


@pytest.mark.parametrize("away", ["engine", "store", "journal", "something new"])
async def test_a_node_that_cannot_answer_is_not_ready_whatever_else_is_away(away: str) -> None:
    """P9: also what nobody has classed as dispensable."""
    response = await get(make_health({away: answers("away"), "database": answers("away")}), "/readyz")

    assert (response.status_code, response.json()["status"]) == (503, "unavailable")


@pytest.mark.parametrize(
    ("lag", "status", "said"),
    [
        (OutboxLag(7, 300.0, 2), "ok", "ok"),
        (OutboxLag(7, 300.5, 0), "degraded", "7 records wait, the oldest for 300 s"),
    ],
)
async def test_what_waits_to_be_stored_is_told_and_degrades_once_it_is_old(
    lag: OutboxLag, status: str, said: str
) -> None:
    async def measure() -> OutboxLag:
        return lag

    response = await get(make_health({"store": answers(None)}, lag=measure), "/readyz")

    body = response.json()
    assert (response.status_code, body["status"]) == (200, status)
    assert body["checks"] == {"store": "ok", "outbox": said}
    assert body["outbox"] == {"pending": lag.pending, "oldest_s": lag.oldest_s, "dead": lag.dead}


async def test_an_outbox_that_nobody_can_see_is_not_described_by_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.health, "MAX_AGE_S", -1.0)
    found = [OutboxLag(7, 1.0, 0)]

    async def measure() -> OutboxLag:
        if not found:
            raise StoreUnavailable("Redis does not answer")
        return found.pop()

    health = make_health({}, lag=measure)
    before = await health.readiness()
    after = await health.readiness()

    assert (before.outbox, after.outbox) == (OutboxLag(7, 1.0, 0), None)
    assert after.checks == {"outbox": "unknown: the store is away"}


async def test_what_a_check_raises_is_named_by_its_kind_and_reveals_nothing() -> None:
    response = await get(make_health({"store": breaks}), "/readyz")

    assert response.json()["checks"] == {"store": "failed: ConnectionError"}
    assert "hunter2" not in response.text


async def test_a_part_that_does_not_answer_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.health, "CHECK_TIMEOUT_S", 0.01)

    readiness = await make_health({"store": hangs, "engine": answers(None)}).readiness()

    assert readiness.checks == {"store": "no answer within 0.01 s", "engine": "ok"}


async def test_checks_run_side_by_side() -> None:
    both = asyncio.Barrier(2)

    async def meet() -> str | None:
        await both.wait()
        return None

    readiness = await make_health({"one": meet, "two": meet}).readiness()

    assert readiness.status == "ok"


async def test_a_draining_node_is_not_ready_though_all_its_parts_are() -> None:
    response = await get(make_health({"store": answers(None)}, is_draining=True), "/readyz")

    assert response.status_code == 503
    assert response.json()["checks"] == {"store": "ok", "drain": "the server is stopping"}


async def test_many_probes_cost_one_check_and_an_old_answer_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    check = Counted()
    health = make_health({"store": check})

    found = await asyncio.gather(*(health.readiness() for _ in range(20)))
    num_calls_at_once = check.num_calls
    monkeypatch.setattr(server.health, "MAX_AGE_S", -1.0)
    await health.readiness()

    assert found == [Readiness("ok", "b1", {"store": "ok"}, 3)] * 20
    assert (num_calls_at_once, check.num_calls) == (1, 2)


async def test_draining_is_seen_at_once_though_the_checks_are_remembered() -> None:
    is_draining = False
    health = Health({}, build_id="b1", is_draining=lambda: is_draining, num_sessions=lambda: 0)
    before = await health.readiness()

    is_draining = True
    after = await health.readiness()

    assert [before.status, after.status] == ["ok", "unavailable"]


async def test_a_process_is_alive_whatever_does_not_work() -> None:
    response = await get(make_health({"store": breaks}, is_draining=True), "/healthz")

    assert (response.status_code, response.json()) == (200, {"status": "ok", "build": "b1"})
