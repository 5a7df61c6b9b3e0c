"""Which tests share a process, and in which order files are taken up, where several processes share a run.

A file's tests stay together, for what they share; the engines' files too, since a vLLM takes half a minute to start. What takes longest
comes first: else one process would work at it alone while the others are done.
"""

from collections.abc import Sequence
from typing import Final

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

_TOGETHER: Final = ("tests/engine/",)
_FIRST: Final = ("tests/faults/", *_TOGETHER, "tests/end_to_end/", "tests/browser/")


class HouseScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """xdist's own by scopes, with other scopes."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def scope_of(nodeid: str) -> str:
    """The name of those tests that one process runs one after the other."""
    path = nodeid.partition("::")[0]
    return next((folder for folder in _TOGETHER if path.startswith(folder)), path)


def longest_first(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """The same tests; in each folder as they were."""

    def rank(item: pytest.Item) -> int:
        return next((i for i, folder in enumerate(_FIRST) if item.nodeid.startswith(folder)), len(_FIRST))

    return sorted(items, key=rank)
