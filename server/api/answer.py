"""What the API answers with: JSON that no cache keeps and no browser takes for anything else."""

from collections.abc import Mapping
from typing import Final

import msgspec
from starlette.responses import Response

HEADERS: Final[Mapping[str, str]] = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


def answer(body: object, status: int = 200) -> Response:
    """The body as JSON."""
    return Response(msgspec.json.encode(body), status, HEADERS, media_type="application/json")
