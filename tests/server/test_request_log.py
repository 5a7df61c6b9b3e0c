"""The request log: nothing waits for it, nothing in it is secret, and its memory is bounded. P7, P9."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from starlette.requests import HTTPConnection
from starlette.types import Message, Receive, Scope, Send
from structlog.testing import capture_logs

import server.request_log
from server.request_log import RequestLog, RequestLogMiddleware
from sessions.errors import StoreUnavailable
from sessions.records import RequestRecord, decode_record
from sessions.sqlite_store import SqliteStore


class Outbox(SqliteStore):
    """A store of which only `enqueue` is used: it can be away, and it can take its time."""

    def __init__(self) -> None:
        super().__init__(Path("never-opened.db"))
        self.batches: list[list[str]] = []
        self.is_away = False
        self.arrived = asyncio.Semaphore(0)
        self.gate = asyncio.Event()
        self.gate.set()

    async def enqueue(self, records: Sequence[bytes]) -> None:
        self.arrived.release()
        await self.gate.wait()
        if self.is_away:
            raise StoreUnavailable("the store is away")
        decoded = [decode_record(record) for record in records]
        self.batches.append([record.request_id for record in decoded if isinstance(record, RequestRecord)])

    @property
    def stored(self) -> list[str]:
        return [request_id for batch in self.batches for request_id in batch]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.request_log, "_GATHER_S", 0.0)
    monkeypatch.setattr(server.request_log, "_RETRY_S", 0.0)


@asynccontextmanager
async def running(log: RequestLog) -> AsyncIterator[None]:
    task = asyncio.create_task(log.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def make_request(number: int) -> RequestRecord:
    return RequestRecord(f"req_{number}", "ann", "GET", "/v1/x", 200, 1.0, 1)


async def test_entries_are_gathered_and_passed_on_in_order() -> None:
    outbox = Outbox()
    log = RequestLog(outbox)

    async with running(log):
        for number in range(3):
            log.add(make_request(number))
        await outbox.arrived.acquire()
        log.add(make_request(3))
        await outbox.arrived.acquire()
        await log.flush()

    assert outbox.batches == [["req_0", "req_1", "req_2"], ["req_3"]]


async def test_an_absent_store_keeps_entries_waiting_and_loses_none() -> None:
    """P9."""
    outbox = Outbox()
    outbox.is_away = True
    log = RequestLog(outbox)

    with capture_logs() as logs:
        async with running(log):
            log.add(make_request(0))
            for _ in range(2):
                await outbox.arrived.acquire()
            log.add(make_request(1))
            await outbox.arrived.acquire()
            outbox.is_away = False
            while not outbox.batches:
                await outbox.arrived.acquire()
            await log.flush()

    assert outbox.stored == ["req_0", "req_1"]
    assert {entry["event"] for entry in logs} == {"request_log.waiting"}


async def test_with_the_store_away_for_long_the_oldest_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """P7: also those that came while a batch was on its way."""
    monkeypatch.setattr(server.request_log, "_MAX_WAITING", 3)
    outbox = Outbox()
    outbox.is_away = True
    log = RequestLog(outbox)
    for number in range(5):
        log.add(make_request(number))
    for begin in (5, 8):
        outbox.gate.clear()
        flushing = asyncio.create_task(log.flush())
        await outbox.arrived.acquire()
        for number in range(begin, begin + 3):
            log.add(make_request(number))
        outbox.gate.set()
        with pytest.raises(StoreUnavailable):
            await flushing

    outbox.is_away = False
    await log.flush()

    assert outbox.stored == ["req_8", "req_9", "req_10"]
    assert log.num_dropped == 8


async def test_a_flush_waits_for_the_batch_that_is_on_its_way() -> None:
    """P3: a stop flushes before it cancels."""
    outbox = Outbox()
    log = RequestLog(outbox)

    async with running(log):
        outbox.gate.clear()
        log.add(make_request(0))
        await outbox.arrived.acquire()
        flushing = asyncio.create_task(log.flush())
        await asyncio.sleep(0)
        was_done = flushing.done()
        outbox.gate.set()
        await flushing

    assert not was_done
    assert outbox.stored == ["req_0"]


async def test_a_request_of_nobody_known_is_logged_and_goes_no_further() -> None:
    """P7: a flood of them fills neither the outbox nor the table."""
    outbox = Outbox()
    log = RequestLog(outbox)

    with capture_logs() as logs:
        log.add(msgspec.structs.replace(make_request(0), user_id=None, status=401))
        log.add(make_request(1))
    await log.flush()

    assert outbox.stored == ["req_1"]
    [line] = logs
    assert (line["event"], line["method"], line["path"], line["status"]) == ("request.of_nobody", "GET", "/v1/x", 401)


async def test_nothing_to_pass_on_is_no_call() -> None:
    outbox = Outbox()

    await RequestLog(outbox).flush()

    assert outbox.batches == []


# The middleware


async def serve(
    path: str, *, status: int | None = 201, kind: str = "http", user_id: str | None = "ann"
) -> list[RequestRecord]:
    """One request through the middleware; what it added to the log. Without a status the application crashes."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if user_id is not None:
            HTTPConnection(scope).state.user_id = user_id
        if status is None:
            raise ZeroDivisionError
        await send({"type": "http.response.start", "status": status})
        await send({"type": "http.response.body", "body": b"secret"})

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None: ...

    records: list[RequestRecord] = []

    class Kept(RequestLog):
        def add(self, record: RequestRecord) -> None:
            records.append(record)

    scope = {
        "type": kind,
        "method": "POST",
        "path": path,
        "query_string": b"token=secret",
        "headers": [(b"authorization", b"Bearer secret")],
        "state": {"services": SimpleNamespace(requests=Kept(Outbox()))},
    }
    try:
        await RequestLogMiddleware(app)(scope, receive, send)
    except ZeroDivisionError:
        assert status is None
    return records


async def test_a_request_of_the_api_is_logged_without_what_is_secret() -> None:
    [record] = await serve("/v1/realtime/client_secrets")

    assert (record.method, record.path, record.status) == ("POST", "/v1/realtime/client_secrets", 201)
    assert record.user_id == "ann"
    assert record.request_id.startswith("req_")
    assert record.duration_ms >= 0
    assert "secret" not in repr(record).replace("client_secrets", "")


async def test_a_request_that_nobody_vouched_for_has_no_user() -> None:
    [record] = await serve("/v1/x", status=401, user_id=None)

    assert record.user_id is None


async def test_a_request_that_crashed_is_logged_as_500() -> None:
    [record] = await serve("/v1/x", status=None)

    assert record.status == 500


async def test_a_long_path_is_cut() -> None:
    [record] = await serve("/v1/" + "x" * 9000)

    assert len(record.path) == 255


@pytest.mark.parametrize(("path", "kind"), [("/healthz", "http"), ("/v1x", "http"), ("/v1/realtime", "websocket")])
async def test_what_is_not_the_http_api_is_not_logged_here(path: str, kind: str) -> None:
    assert await serve(path, kind=kind) == []
