"""Claims, creations among them, whose reply never came: the store may have made the session ours, and nobody else adopts it then."""

from collections.abc import Iterable

# A flood of claims while the store is away must not fill the memory.
_MAX_CLAIMS = 10_000


class LostClaims:
    """Ids of sessions, by the owner that claimed them, until another claim of the same owner tells whose they are."""

    def __init__(self) -> None:
        self._by_owner: dict[str, set[str]] = {}

    def add(self, owner: str, session_ids: Iterable[str]) -> None:
        """These claims were sent and not answered."""
        lost = self._by_owner.setdefault(owner, set())
        for session_id in session_ids:
            if len(lost) < _MAX_CLAIMS:
                lost.add(session_id)

    def discard(self, owner: str, session_id: str) -> None:
        """A later claim of the session was answered, and not by a refusal: a stranger's tells nothing."""
        if lost := self._by_owner.get(owner):
            lost.discard(session_id)

    def take(self, owner: str, limit: int) -> list[str]:
        """Up to `limit` of them, which are no longer here."""
        lost = self._by_owner.get(owner, set())
        return [lost.pop() for _ in range(min(limit, len(lost)))]
