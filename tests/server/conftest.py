"""What tests of live sessions stand on."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.server.house import House, Limits, open_house


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """A node of the test's own."""
    async with open_house(tmp_path / "sessions.db", Limits()) as house:
        yield house
