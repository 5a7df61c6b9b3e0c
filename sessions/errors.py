"""The root error of the package `sessions`, and the ones its store can raise."""


class SessionError(Exception):
    """Root of every error raised by `sessions`."""


class StoreUnavailable(SessionError):
    """The store did not answer, or not in time; nothing is known about the last call."""


class SessionNotFound(SessionError):
    """No such session in the store."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"no session {session_id}")
        self.session_id = session_id
