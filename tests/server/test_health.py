"""Liveness and readiness: which part does not work, said without secrets, at the cost of one check a second. P9."""

import asyncio
from collections.abc import Mapping

import httpx
import pytest
from starlette.applications import Starlette

import server.health
from server.health import Check, Health, Readiness, health_routes


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


def make_health(checks: Mapping[str, Check], *, is_draining: bool = False) -> Health:
    return Health(checks, build_id="b1", is_draining=lambda: is_draining, num_sessions=lambda: 3)


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
    }
    assert response.headers["cache-control"] == "no-store"


async def test_one_part_that_does_not_work_is_named_and_the_others_are_not_blamed() -> None:
    response = await get(make_health({"store": answers(None), "engine": answers("no GPU")}), "/readyz")

    assert response.status_code == 503
    assert response.json()["checks"] == {"store": "ok", "engine": "no GPU"}
    assert response.json()["status"] == "unavailable"


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
