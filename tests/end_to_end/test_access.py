"""How a browser gets in: with a client secret that its backend asked for, or, in development, that the page asked for itself."""

import json
from collections.abc import Iterator

import pytest
from starlette.routing import Route

from server.app import create_app
from server.settings import load_settings
from tests.end_to_end.client import WEATHER, open_client
from tests.end_to_end.conftest import COMMON
from tests.end_to_end.processes import SECRET, FluemanProcess, request, running, token_of

CLIENT_SECRETS = "/v1/realtime/client_secrets"
SESSION = {"type": "realtime", "model": "demo", "instructions": "Answer as a pirate.", "tools": [WEATHER]}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FluemanProcess]:
    """An embedded server in development."""
    folder = tmp_path_factory.mktemp("node")
    process = FluemanProcess(folder, COMMON | {"FLUEMAN_DATA_DIR": str(folder / "var")}, "serve")
    with running(process):
        yield process


async def test_a_client_secret_opens_a_session_with_the_configuration_that_it_carries(node: FluemanProcess) -> None:
    bearer = {"authorization": f"Bearer {token_of('backend')}"}
    status, body = request(node.port, "POST", CLIENT_SECRETS, body={"session": SESSION}, headers=bearer)
    assert status == 200, body
    secret = json.loads(body)["value"]
    assert secret.startswith("ek_")

    subprotocols = ["realtime", f"openai-insecure-api-key.{secret}"]
    async with open_client(node.port, model=None, subprotocols=subprotocols) as client:
        session = client.events[0]["session"]
        assert (session["model"], session["instructions"]) == ("demo", "Answer as a pirate.")
        response = await client.ask('[call get_weather {"city":"Kiel"}]')

        # The tools are in force, not only shown.
        assert [(call["name"], json.loads(call["arguments"])) for call in response["output"]] == [
            ("get_weather", {"city": "Kiel"})
        ]


def test_a_client_secret_mints_no_other_and_nobody_gets_one_without_a_token(node: FluemanProcess) -> None:
    bearer = {"authorization": f"Bearer {token_of('backend')}"}
    secret = json.loads(request(node.port, "POST", CLIENT_SECRETS, body={}, headers=bearer)[1])["value"]

    statuses = [
        request(node.port, "POST", CLIENT_SECRETS, body={}, headers=headers)[0]
        for headers in ({}, {"authorization": f"Bearer {secret}"}, {"authorization": "Bearer nonsense"})
    ]

    assert statuses == [401, 401, 401]


async def test_the_page_gets_a_token_by_itself_in_development(node: FluemanProcess) -> None:
    origin = {"origin": f"http://127.0.0.1:{node.port}"}
    status, body = request(node.port, "POST", "/dev/token", headers=origin)
    foreign, _ = request(node.port, "POST", "/dev/token", headers={"origin": "https://evil.example"})

    assert (status, foreign) == (200, 403)
    given = json.loads(body)
    async with open_client(
        node.port, model=given["model"], subprotocols=["realtime", f"openai-insecure-api-key.{given['value']}"]
    ) as client:
        assert (await client.ask("[echo in]"))["status"] == "completed"


def test_production_has_no_route_that_gives_tokens_away() -> None:
    settings = {
        "environment": "production",
        "engine": "scripted",
        "jwt_secret": SECRET,
        "redis_url": "redis://redis.example",
        "database_url": "mysql+aiomysql://mysql.example/flueman",
    }

    production, development = (
        {route.path for route in create_app(load_settings(**changes)).routes if isinstance(route, Route)}
        for changes in (settings, settings | {"environment": "development"})
    )

    assert development - production == {"/dev/token"}
