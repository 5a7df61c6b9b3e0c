"""Steps done at once: what one gives, what an error of one does to the others, and what a caller that goes away does."""

import asyncio
from collections.abc import Coroutine

import pytest

from server.api.at_once import at_once


async def _fail(error: Exception, *, after: asyncio.Event | None = None) -> None:
    if after is not None:
        await after.wait()
    raise error


async def _wait_forever(begun: asyncio.Event, ended: list[str]) -> None:
    begun.set()
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("ended")


async def _do(*steps: Coroutine[None, None, None]) -> None:
    async with at_once() as tasks:
        for step in steps:
            tasks.create_task(step)


async def test_each_gives_its_own() -> None:
    async with at_once() as tasks:
        first = tasks.create_task(asyncio.sleep(0, result=1))
        second = tasks.create_task(asyncio.sleep(0, result="two"))

    assert (first.result(), second.result()) == (1, "two")


async def test_an_error_comes_as_it_is_once_the_others_have_ended() -> None:
    begun = asyncio.Event()
    ended: list[str] = []

    with pytest.raises(KeyError, match="which"):
        await _do(_wait_forever(begun, ended), _fail(KeyError("which"), after=begun))

    assert ended == ["ended"]


async def test_of_several_errors_the_first_comes() -> None:
    with pytest.raises(KeyError):
        await _do(_fail(KeyError()), _fail(ValueError()))


async def test_nothing_outlives_a_caller_that_goes_away() -> None:
    begun = asyncio.Event()
    ended: list[str] = []

    asking = asyncio.create_task(_do(_wait_forever(begun, ended)))
    await begun.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking

    assert ended == ["ended"]
