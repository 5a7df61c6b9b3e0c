"""The console's API on MariaDB, Redis and S3: what is stored comes back untouched, and no odd id is taken for an outage."""

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from tests import services
from tests.persistence.builders import make_archive, make_events
from tests.server.console import Console, open_console, token
from tests.server.test_api_session import NASTY, PATH, SESSION_ID, make_records

ADMIN = token("ada", "admin")


@pytest.fixture
async def console(
    tmp_path: Path,
    database_url: str,
    own_redis: services.RedisServer,
    s3: services.S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Console]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", services.S3_ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", services.S3_SECRET_KEY)
    query = urlencode({"endpoint": s3.url, "region": services.S3_REGION})
    async with open_console(
        tmp_path,
        database_url=database_url,
        redis_url=own_redis.url,
        archive_url=f"s3://{s3.new_bucket()}/flueman?{query}",
    ) as console:
        yield console


async def test_a_session_comes_back_untouched_and_its_events_byte_for_byte(console: Console) -> None:
    """P8."""
    events = make_events(300)
    await console.seed(SESSION_ID, events, [*make_records(), make_archive(SESSION_ID, 300)])
    await console.settled()

    body = (await console.get(PATH, token())).json()
    export = (await console.get(f"{PATH}/export", token())).content.splitlines()
    notes = (await console.get(f"{PATH}/notes", token())).json()["data"]

    (turn,), (answer,), (rating,), (note,) = body["turns"], body["answers"], body["feedback"], body["notes"]
    assert [turn["text"], answer["text"], answer["prompt"], rating["comment"], note["text"]] == [NASTY] * 5
    assert (answer["sampling"], answer["output"][0]["id"], body["warnings"]) == ({"temperature": 0.7}, "item_2", [])
    assert [line.partition(b'"event":')[2][:-1] for line in export[1:-1]] == events
    assert notes == body["notes"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/sessions?user={odd}",
        "/v1/sessions?client={odd}",
        "/v1/sessions?model={odd}",
        "/v1/sessions?text={odd}",
        "/v1/sessions/{odd}",
        "/v1/sessions/sess_{odd}/export",
        f"{PATH}/prompts/{{odd}}",
        "/v1/overview?client={odd}",
        "/v1/overview?model={odd}",
        "/v1/audit?actor={odd}",
        "/v1/audit?action={odd}",
        "/v1/audit?session_id={odd}",
        "/v1/feedback?session_id={odd}",
        "/v1/feedback?item_id={odd}",
        "/v1/feedback?user_id={odd}",
        "/v1/feedback?reason={odd}",
    ],
)
async def test_an_odd_name_is_not_taken_for_a_database_that_is_away(console: Console, path: str) -> None:
    for odd in ("한나🙂", "' OR 1=1 --", "%_\\", "é" * 40):
        answer = await console.get(path.format(odd=quote(odd, safe="")), ADMIN)

        assert answer.status_code in (200, 400, 404), (odd, answer.text)


async def test_an_odd_id_of_a_rating_is_unknown(console: Console) -> None:
    for odd in ("한나🙂", "fb_", "fb_" + "é" * 26):
        answer = await console.request("DELETE", f"/v1/feedback/{quote(odd, safe='')}", ADMIN)

        assert answer.status_code == 404, (odd, answer.text)
