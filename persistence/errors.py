"""The root error of the package `persistence`, and the kinds that a caller tells apart."""


class PersistenceError(Exception):
    """Root of every error raised by `persistence`."""


class DatabaseUnavailable(PersistenceError):
    """The database did not answer, not in time, or not as a migrated one would; the same call may succeed later."""


class ArchiveUnavailable(PersistenceError):
    """The archive did not answer, not in time, or refused us; the same call may succeed later."""


class PoisonRecord(PersistenceError):
    """A record that cannot be stored as it is: trying it again alone would fail again. The text names no content."""


class ArchiveConflict(PoisonRecord):
    """The archive already holds other bytes under this key."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the archive holds other bytes under {key}")
        self.key = key


class JournalGap(PoisonRecord):
    """The journal lacks events that it should still hold, so that what is left must not pass for the whole."""

    def __init__(self, session_id: str, sequence: int) -> None:
        super().__init__(f"the journal of {session_id} lacks event {sequence}")
        self.session_id = session_id
        self.sequence = sequence


class ArchiveDamaged(PersistenceError):
    """An archived object is missing, or not what was archived."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key
        self.reason = reason
