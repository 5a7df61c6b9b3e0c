"""What an upgrade of `GET /v1/realtime` leaves behind, whatever it was for: its line in the request log."""

import time

from server.identifiers import new_id
from server.services import Services
from sessions.records import RequestRecord

PATH = "/v1/realtime"


class Entry:
    """One line of the request log."""

    __slots__ = ("_created_ms", "_is_closed", "_services", "_started_s", "session_id", "user_id")

    def __init__(self, services: Services) -> None:
        self._services = services
        self._created_ms = services.node.now_ms()
        self._started_s = time.monotonic()
        self._is_closed = False
        self.user_id: str | None = None
        self.session_id: str | None = None

    def close(self, status: int) -> None:
        """Write the line; 101 is a connection that was served."""
        if self._is_closed:
            return
        self._is_closed = True
        self._services.requests.add(
            RequestRecord(
                request_id=new_id("req_"),
                user_id=self.user_id,
                method="WEBSOCKET",
                path=PATH,
                status=status,
                duration_ms=(time.monotonic() - self._started_s) * 1000,
                created_ms=self._created_ms,
                session_id=self.session_id,
            )
        )
