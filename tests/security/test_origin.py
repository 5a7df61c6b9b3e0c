"""Cross-site WebSocket hijacking: who may connect from which page."""

import json

import pytest
from websockets.exceptions import InvalidStatus

from tests.security.conftest import ORIGIN, Target


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "",
        f"{ORIGIN}.evil.example",
        "https://evil-avatar.example",
        "http://avatar.example",
        f"{ORIGIN}:8443",
        f"{ORIGIN}/",
        f"{ORIGIN} https://evil.example",
        "http://127.0.0.1:1",
        "http://localhost",
    ],
)
async def test_a_page_of_another_origin_is_refused_before_its_token_is_looked_at(target: Target, origin: str) -> None:
    for token in (target.token(), "not a token"):
        with pytest.raises(InvalidStatus) as refused:
            async with target.connect(token, headers={"origin": origin}):
                pass

        assert refused.value.response.status_code == 403
        assert json.loads(refused.value.response.body)["error"]["code"] == "origin_not_allowed"


async def test_a_page_of_an_allowed_origin_and_a_client_without_one_connect(target: Target) -> None:
    async with target.session(headers={"origin": ORIGIN}) as page, target.session() as program:
        await page.is_answered()
        await program.is_answered()


async def test_a_rebound_name_is_not_this_servers_own_page(target: Target) -> None:
    # A stranger's name that resolves to 127.0.0.1: Host and Origin agree, and yet it is not ours.
    with pytest.raises(InvalidStatus) as refused:
        async with target.connect(
            target.token(), headers={"host": "evil.example:80", "origin": "http://evil.example:80"}
        ):
            pass

    assert refused.value.response.status_code == 403
