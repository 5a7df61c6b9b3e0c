"""How the pages' files are served: headers, caching, and nothing outside their folder. Needs no browser."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from httpx import ASGITransport, AsyncClient
from starlette.applications import Starlette

from server.pages import WEB_DIRECTORY, page_routes


@pytest_asyncio.fixture
async def client() -> AsyncIterator[AsyncClient]:
    transport = ASGITransport(app=Starlette(routes=page_routes()))
    async with AsyncClient(transport=transport, base_url="http://flueman.test") as client:
        yield client


MAX_LINES = 300
FILES = sorted(file for file in WEB_DIRECTORY.rglob("*") if file.is_file())
PAGES = ("/", "/console", "/console/overview", "/console/sessions/sess_1", "/favicon.ico")


@pytest.mark.parametrize("path", [*PAGES, *(f"/web/{file.relative_to(WEB_DIRECTORY)}" for file in FILES)])
async def test_every_file_has_the_pages_headers(client: AsyncClient, path: str) -> None:
    answer = await client.get(path)
    head = await client.head(path)

    assert (answer.status_code, head.status_code) == (200, 200)
    assert head.content == b""
    for headers in (answer.headers, head.headers):
        policy = headers["content-security-policy"].split("; ")
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-cache"


async def test_a_file_that_did_not_change_is_not_sent_again(client: AsyncClient) -> None:
    first = await client.get("/web/app.js")

    again = await client.get("/web/app.js", headers={"If-None-Match": first.headers["etag"]})

    assert again.status_code == 304
    assert again.content == b""
    assert again.headers["content-security-policy"] == first.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("", "text/html"), ("web/style.css", "text/css"), ("web/app.js", "javascript"), ("favicon.ico", "image/svg+xml")],
)
async def test_types_are_named(client: AsyncClient, name: str, kind: str) -> None:
    answer = await client.get(f"/{name}")

    assert kind in answer.headers["content-type"]


@pytest.mark.parametrize(
    "path",
    [
        "/web/../pages.py",
        "/web/%2e%2e/pages.py",
        "/web/..%2fpages.py",
        "/web/%2e%2e%5cpages.py",
        "/web//etc/passwd",
        "/web/%2fetc%2fpasswd",
        "/web/app.js%00.html",
        "/web/",
        "/web/missing.js",
    ],
)
async def test_nothing_outside_the_folder_is_served(client: AsyncClient, path: str) -> None:
    answer = await client.get(path)

    assert answer.status_code == 404


@pytest.mark.parametrize("path", ["/", "/web/app.js"])
async def test_other_methods_are_refused(client: AsyncClient, path: str) -> None:
    answer = await client.post(path)

    assert answer.status_code == 405


async def test_no_file_asks_for_anything_from_elsewhere() -> None:
    allowed = ("http://www.w3.org/2000/svg",)
    for file in FILES:
        text = file.read_text()
        for name in allowed:
            text = text.replace(name, "")
        assert "http://" not in text, file.name
        assert "https://" not in text, file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|srcdoc", text), (
            file.name
        )


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.suffix in (".js", ".css", ".html")], ids=lambda file: file.name
)
def test_no_file_is_too_long_to_be_read_at_once(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= MAX_LINES
