"""The console's pages with a made-up server behind them: answers shaped as the real ones, and each state of them when a test wants it."""

import asyncio
import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from server.pages import page_routes
from tests.browser.stub_recording import BEGAN_MS, Recording, rating_of
from tests.services import free_port

Json = dict[str, Any]
TOKENS = {"support-token": "support", "other-token": "support", "admin-token": "admin"}
_TICK_S = 0.05


@dataclass
class Stub:
    """What the server says. `refuse`: path → status, to say no with; `asked`: queries and bodies by path.

    Of replays: `dead` connections, which never say a word again, are those up to that number; `drops_with` is the close code that
    follows the first word; so many `num_refused` seeks come to be refused, and updates `num_answered` (all, if None). What plays waits
    at `holds_at_ms`, until that is further on.
    """

    port: int
    sessions: list[Json] = field(default_factory=list)
    recordings: dict[str, Recording] = field(default_factory=dict)
    details: dict[str, Json] = field(default_factory=dict)
    days: list[Json] = field(default_factory=list)
    audits: list[Json] = field(default_factory=list)
    refuse: dict[str, int] = field(default_factory=dict)
    asked: dict[str, list[Json]] = field(default_factory=dict)
    updates: list[Json] = field(default_factory=list)
    export_end: Json | None = field(default_factory=lambda: {"complete": True})
    is_live: bool = False
    gaps: list[tuple[int, int, str]] = field(default_factory=list)
    find: Callable[[Json], Json] | None = None
    began_s: list[float] = field(default_factory=list)
    dropped: int = 0
    dead: int = 0
    drops_with: int | None = None
    num_refused: int = 0
    num_answered: int | None = None
    holds_at_ms: float = math.inf

    @property
    def num_connections(self) -> int:
        """Replays that were begun."""
        return len(self.began_s)

    @property
    def url(self) -> str:
        """The console."""
        return f"http://127.0.0.1:{self.port}/console"

    def drop(self) -> None:
        """Cut every replay that is going on, without a word."""
        self.dropped += 1

    def add(self, recording: Recording, **changes: object) -> Json:
        """A session of it, which can be found and played."""
        feedback = changes.pop("feedback", [])
        notes = changes.pop("notes", [])
        extent = changes.pop("extent", {})
        summary = {
            "session_id": recording.session_id,
            "user_id": "anna",
            "client_id": "kiosk",
            "model": recording.model,
            "status": "ended",
            "created_ms": BEGAN_MS,
            "updated_ms": BEGAN_MS + recording.now_ms,
            "ended_ms": BEGAN_MS + recording.now_ms,
            "num_turns": len(recording.turns),
            "num_answers": len(recording.answers),
            "num_errors": sum(answer["status"] == "failed" for answer in recording.answers),
            "num_interruptions": sum(answer["status"] == "cancelled" for answer in recording.answers),
            "num_up": 0,
            "num_down": 0,
            "max_first_token_ms": max((a["first_token_ms"] - a["created_ms"] for a in recording.answers), default=None),
            "first_text": recording.turns[0]["text"] if recording.turns else None,
            "snippet": None,
            **changes,
        }
        assert isinstance(feedback, list)
        assert isinstance(notes, list)
        assert isinstance(extent, dict)
        summary["num_up"] = sum(rating["rating"] == "up" for rating in feedback)
        summary["num_down"] = sum(rating["rating"] == "down" for rating in feedback)
        self.sessions.append(summary)
        self.recordings[recording.session_id] = recording
        self.details[recording.session_id] = {
            "session": summary,
            "extent": recording.extent | extent,
            "turns": recording.turns,
            "answers": recording.answers,
            "feedback": feedback,
            "notes": notes,
            "audit_id": "audit_1",
        }
        return summary


def _problem(status: int) -> Response:
    code = {401: "invalid_token", 404: "not_found", 503: "database_unavailable"}.get(status, "invalid_request")
    message = {404: "Not Found.", 503: "The database is away."}.get(status, "This was refused.")
    return JSONResponse(
        {"error": {"message": message, "type": "x", "code": code, "param": None, "id": "err_1234"}}, status
    )


def _app(stub: Stub) -> Starlette:
    def guarded(answer: Callable[[Request, Json], Response]) -> Callable[[Request], Any]:
        async def respond(request: Request) -> Response:
            token = request.headers.get("authorization", "").removeprefix("Bearer ")
            if token not in TOKENS:
                return _problem(401)
            body = await request.json() if request.method == "POST" else {}
            stub.asked.setdefault(request.url.path, []).append(body or dict(request.query_params))
            if request.url.path in stub.refuse:
                return _problem(stub.refuse[request.url.path])
            return answer(request, body)

        return respond

    def me(request: Request, _: Json) -> Response:
        token = request.headers["authorization"].removeprefix("Bearer ")
        facts = {
            "subject": "rita" if token == "other-token" else "sam",
            "role": TOKENS[token],
            "client_id": "kiosk",
            "scopes": [],
            "expires_at": int(time.time()) + 3600,
            "feedback_reasons": ["inaccurate", "too-long", "wrong-face"],
        }
        return JSONResponse(facts)

    def sessions(request: Request, _: Json) -> Response:
        query = dict(request.query_params)
        if stub.find:
            return JSONResponse(stub.find(query))
        start = int(query.get("after", "0"))
        page = stub.sessions[start : start + int(query["limit"])]
        after = start + len(page)
        more = str(after) if after < len(stub.sessions) else None
        return JSONResponse({"data": page, "next": more, "searched_to_ms": None})

    def session(request: Request, _: Json) -> Response:
        found = stub.details.get(request.path_params["id"])
        return JSONResponse(found) if found else _problem(404)

    def export(request: Request, _: Json) -> Response:
        recording = stub.recordings[request.path_params["id"]]
        events = [{"sequence": e["sequence_number"], "at_ms": BEGAN_MS + at, "event": e} for at, e in recording.events]
        end = [] if stub.export_end is None else [{"end": {"num_events": len(events), **stub.export_end}}]
        first = {"session": stub.details[recording.session_id]["session"]}
        lines = [json.dumps(line) for line in (first, *events, *end)]
        return PlainTextResponse("\n".join(lines) + "\n", media_type="application/x-ndjson")

    def note(request: Request, body: Json) -> Response:
        notes = stub.details[request.path_params["id"]]["notes"]
        notes.append(
            {"note_id": f"note_{len(notes)}", "author_id": "sam", "created_ms": BEGAN_MS, "position_ms": None, **body}
        )
        return JSONResponse({"note": notes[-1]}, 201)

    def feedback(request: Request, body: Json) -> Response:
        made = rating_of(
            body["session_id"], body["item_id"], user_id="sam", role="support", rated_ms=BEGAN_MS, **body["feedback"]
        )
        kept = stub.details[body["session_id"]]["feedback"]
        kept[:] = [one for one in kept if one["feedback_id"] != made["feedback_id"]] + [made]
        return JSONResponse({"feedback": made}, 201)

    def overview(request: Request, _: Json) -> Response:
        model = request.query_params.get("model")
        return JSONResponse({"days": [day for day in stub.days if model in (None, day["model"])]})

    def audit(request: Request, _: Json) -> Response:
        start = int(request.query_params.get("after", "0"))
        after = start + int(request.query_params["limit"])
        more = str(after) if after < len(stub.audits) else None
        return JSONResponse({"data": stub.audits[start:after], "has_more": more is not None, "next": more})

    async def realtime(socket: WebSocket) -> None:
        await Playback(stub, socket).run()

    return Starlette(
        routes=[
            Route("/v1/me", guarded(me)),
            Route("/v1/sessions", guarded(sessions)),
            Route("/v1/sessions/{id}", guarded(session)),
            Route("/v1/sessions/{id}/export", guarded(export)),
            Route("/v1/sessions/{id}/notes", guarded(note), methods=["POST"]),
            Route("/v1/feedback", guarded(feedback), methods=["POST"]),
            Route("/v1/overview", guarded(overview)),
            Route("/v1/audit", guarded(audit)),
            WebSocketRoute("/v1/realtime", realtime),
            *page_routes(),
        ]
    )


class Playback:
    """A replay on one connection."""

    def __init__(self, stub: Stub, socket: WebSocket) -> None:
        self._stub = stub
        self._socket = socket
        query = socket.query_params
        self._recording = stub.recordings.get(query["replay"])
        self._speed = float(query.get("speed", "1"))
        self._is_paused = query.get("paused") == "true"
        self._position = float(query.get("position", "0"))
        self._max_silence_ms: int | None = None
        self._next = 0
        self._is_done = False
        self._number = 0
        self._waiting: deque[Json] = deque()

    async def run(self) -> None:
        """Until the client leaves."""
        self._stub.began_s.append(time.monotonic())
        self._number = self._stub.num_connections
        num_dropped = self._stub.dropped
        await self._socket.accept(subprotocol="realtime")
        if self._position > self._longest_ms:
            await self._refuse("integer_above_max_value", "position")
            await self._socket.close(4000)
            return
        await self._restart()
        if self._stub.drops_with is not None:
            await self._socket.close(self._stub.drops_with)
            return
        listening = asyncio.create_task(self._socket.receive_json())
        try:
            while True:
                wait_s = self._wait_s()
                began = time.monotonic()
                done, _ = await asyncio.wait(
                    [listening], timeout=min(wait_s, _TICK_S) if wait_s is not None else _TICK_S
                )
                if self._stub.dropped > num_dropped:
                    await self._socket.close(1012)
                    return
                if done:
                    self._hear(listening.result())
                    listening = asyncio.create_task(self._socket.receive_json())
                if self._number <= self._stub.dead:
                    continue
                if not self._is_paused and not self._is_done:
                    self._go_on((time.monotonic() - began) * 1000 * self._speed)
                if self._waiting:
                    await self._answer()
                elif wait_s is not None and wait_s <= _TICK_S:
                    await self._step()
        except WebSocketDisconnect:
            pass
        finally:
            listening.cancel()

    @property
    def _longest_ms(self) -> float:
        assert self._recording
        return float("inf") if self._stub.is_live else self._recording.events[-1][0]

    def _wait_s(self) -> float | None:
        events = self._recording.events if self._recording else []
        if self._is_paused or self._is_done or self._number <= self._stub.dead:
            return None
        if self._next >= len(events):
            return _TICK_S if self._stub.is_live else 0
        if events[self._next][0] > self._stub.holds_at_ms:
            return None
        silence_ms = events[self._next][0] - self._position
        if self._max_silence_ms is not None and silence_ms > self._max_silence_ms:
            self._position = events[self._next][0] - self._max_silence_ms
        return max(0.0, (events[self._next][0] - self._position) / self._speed / 1000)

    def _go_on(self, ms: float) -> None:
        furthest_ms = max(self._position, self._stub.holds_at_ms)
        self._position = min(self._position + ms, furthest_ms)

    async def _step(self) -> None:
        assert self._recording
        if self._next >= len(self._recording.events):
            self._is_done = not self._stub.is_live
            if self._is_done:
                await self._socket.send_json(
                    {"type": "avatar.replay.done", "event_id": "d", "position": int(self._position)}
                )
            return
        await self._send(self._next)
        self._position = self._recording.events[self._next][0]
        self._next += 1

    async def _send(self, index: int) -> None:
        assert self._recording
        for first, last, reason in self._stub.gaps:
            if index + 1 == first:
                hole = {"first_sequence_number": first, "last_sequence_number": last, "reason": reason}
                await self._socket.send_json({"type": "avatar.replay.gap", "event_id": "g", **hole})
            if first <= index + 1 <= last:
                return
        await self._socket.send_json(self._recording.events[index][1])

    def _hear(self, change: Json) -> None:
        self._stub.updates.append(change)
        self._waiting.append(change)

    async def _answer(self) -> None:
        """What waits, as far as it is to be answered; until then where it is."""
        while self._waiting and self._stub.num_answered != 0:
            if self._stub.num_answered is not None:
                self._stub.num_answered -= 1
            await self._update(self._waiting.popleft())
        if self._waiting:
            await self._tell(restarted=False)

    async def _refuse(self, code: str, param: str | None) -> None:
        error = {"type": "invalid_request_error", "code": code, "message": "This was refused.", "param": param}
        await self._socket.send_json({"type": "error", "event_id": "e", "error": error})

    async def _update(self, change: Json) -> None:
        if "position" in change and self._stub.num_refused:
            self._stub.num_refused -= 1
            await self._refuse("rate_limit_exceeded", None)
            return
        self._speed = change.get("speed", self._speed)
        self._is_paused = change.get("paused", self._is_paused)
        self._max_silence_ms = change.get("max_silence_ms", self._max_silence_ms)
        if "position" in change:
            self._position = change["position"]
            await self._restart()
        else:
            await self._tell(restarted=False)

    async def _restart(self) -> None:
        assert self._recording
        self._is_done = False
        await self._tell(restarted=True)
        past = [event for at, event in self._recording.events if at <= self._position]
        finished = {event["item_id"] for event in past if event["type"] == "response.output_text.done"}
        for index, event in enumerate(past):
            if event["type"] != "response.output_text.delta" or event["item_id"] not in finished:
                await self._send(index)
        self._next = len(past)

    async def _tell(self, *, restarted: bool) -> None:
        assert self._recording
        holes = [
            {"first_sequence_number": a, "last_sequence_number": b, "reason": why} for a, b, why in self._stub.gaps
        ]
        replay = {
            "session_id": self._recording.session_id,
            "speed": self._speed,
            "paused": self._is_paused,
            "position": int(self._position),
            "duration": self._recording.events[-1][0],
            "max_silence_ms": self._max_silence_ms,
            "first_sequence_number": 1,
            "last_sequence_number": len(self._recording.events),
            "is_live": self._stub.is_live,
            "restarted": restarted,
            "holes": holes,
        }
        await self._socket.send_json({"type": "avatar.replay.updated", "event_id": "u", "replay": replay})


@contextmanager
def running_stub() -> Iterator[Stub]:
    """A stub that answers, in a thread of its own."""
    stub = Stub(free_port())
    config = uvicorn.Config(_app(stub), port=stub.port, log_level="warning", ws="websockets-sansio", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield stub
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join()
