"""The WebSocket protocol on a real socket, against the `websockets` client and against clients that do not play by the rules. P7."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from msgspec import Struct
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

import server.websocket_protocol
from server.websocket_protocol import EXTENSION, ConnectionLimits, FluemanWebSocketProtocol

WAIT_S = 20.0
MAX_FRAME_BYTES = 100_000
CLOSE_TIMEOUT_S = 0.1
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class ObservedProtocol(FluemanWebSocketProtocol):
    """Says when it has read a message and when its connection is gone; waits for a peer's close no longer than a test does."""

    has_read: asyncio.Event
    gone: asyncio.Event

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.has_read = asyncio.Event()
        self.gone = asyncio.Event()
        self.close_timeout = CLOSE_TIMEOUT_S
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.gone.set()

    def send_receive_event_to_app(self) -> None:
        super().send_receive_event_to_app()
        self.has_read.set()


class Ear:
    """A receiver that notes what it is told, and hears no more while `is_full`."""

    def __init__(self, protocol: ObservedProtocol) -> None:
        self.protocol = protocol
        self.texts: list[str] = []
        self.num_binary = 0
        self.num_lost = 0
        self.num_drained = 0
        self.heard = asyncio.Semaphore(0)
        self.is_lost = asyncio.Event()
        self.is_drained = asyncio.Event()
        self.is_stopping = asyncio.Event()
        self.is_full = False

    def received_text(self, text: str) -> None:
        self.texts.append(text)
        if self.is_full:
            self.protocol.pause_reading()
        self.heard.release()

    def received_bytes(self) -> None:
        self.num_binary += 1
        self.heard.release()

    def lost(self) -> None:
        self.num_lost += 1
        self.is_lost.set()

    def drained(self) -> None:
        self.num_drained += 1
        self.is_drained.set()

    def stop(self) -> None:
        self.is_stopping.set()

    async def until_heard(self, count: int = 1) -> None:
        async with asyncio.timeout(WAIT_S):
            for _ in range(count):
                await self.heard.acquire()

    async def until_read(self) -> None:
        async with asyncio.timeout(WAIT_S):
            await self.protocol.has_read.wait()

    async def until_lost(self) -> None:
        async with asyncio.timeout(WAIT_S):
            await self.is_lost.wait()

    async def until_gone(self) -> None:
        async with asyncio.timeout(WAIT_S):
            await self.protocol.gone.wait()


class AnnouncingServer(uvicorn.Server):
    """uvicorn, which says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()


class Served(Struct):
    """A running server and the connections that it has."""

    port: int
    server: AnnouncingServer
    ears: asyncio.Queue[Ear]
    may_attach: asyncio.Event
    is_asked: asyncio.Event

    def early(self) -> connect:
        """A well-behaved client whose receiver may not be there yet."""
        return connect(f"ws://127.0.0.1:{self.port}/", max_size=None, compression=None, ping_interval=None)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[Ear, ClientConnection]]:
        """A well-behaved client and what the server hears of it."""
        async with self.early() as client:
            yield await self.ears.get(), client

    @asynccontextmanager
    async def raw(self) -> AsyncIterator[tuple[Ear, socket.socket]]:
        """A client of bytes, with a small buffer, that has read the handshake and will read no more unless told to."""
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setblocking(False)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await loop.sock_connect(client, ("127.0.0.1", self.port))
            await loop.sock_sendall(client, HANDSHAKE)
            assert (await loop.sock_recv(client, 1024)).startswith(b"HTTP/1.1 101")
            yield await self.ears.get(), client


@asynccontextmanager
async def serving(
    limits: ConnectionLimits | None = None,
    *,
    attach_at_once: bool = True,
    accept_at_once: bool = True,
    is_full: bool = False,
) -> AsyncIterator[Served]:
    ears: asyncio.Queue[Ear] = asyncio.Queue()
    may_attach = asyncio.Event()
    if attach_at_once:
        may_attach.set()

    is_asked = asyncio.Event()

    async def endpoint(websocket: WebSocket) -> None:
        is_asked.set()
        if not accept_at_once:
            await may_attach.wait()
        await websocket.accept()
        ear = Ear(websocket.scope["extensions"][EXTENSION])
        ear.is_full = is_full
        ears.put_nowait(ear)
        await may_attach.wait()
        ear.protocol.attach(ear)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, object]]:
        yield {"connection_limits": limits or ConnectionLimits()}

    config = uvicorn.Config(
        Starlette(routes=[WebSocketRoute("/", endpoint)], lifespan=lifespan),
        ws=ObservedProtocol,
        ws_max_size=MAX_FRAME_BYTES,
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        lifespan="on",
        log_config=None,
        timeout_graceful_shutdown=10,
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = AnnouncingServer(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with asyncio.timeout(WAIT_S):
                await server.is_up.wait()
            yield Served(listener.getsockname()[1], server, ears, may_attach, is_asked)
        finally:
            server.should_exit = True
            # No stop of a receiver closes what a test, or its failure, has left open.
            for protocol in list(server.server_state.connections):
                assert isinstance(protocol, FluemanWebSocketProtocol)
                protocol.transport.abort()
            async with asyncio.timeout(WAIT_S):
                await task


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served


async def closed(client: ClientConnection) -> tuple[int, str]:
    """Read until the close; its code and reason."""
    async with asyncio.timeout(WAIT_S):
        try:
            while True:
                await client.recv()
        except ConnectionClosed:
            assert client.close_code is not None
            return client.close_code, client.close_reason or ""


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """A client's frame, masked with zeros."""
    assert len(payload) < 126
    return bytes((opcode | (0x80 if fin else 0), 0x80 | len(payload), 0, 0, 0, 0)) + payload


# The writer


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 200_000])
async def test_a_payload_of_any_size_is_one_message(served: Served, size: int) -> None:
    async with served.connected() as (ear, client):
        ear.protocol.send_texts([b"x" * size])

        assert await client.recv() == "x" * size


async def test_many_payloads_in_one_write_are_as_many_messages_in_order(served: Served) -> None:
    payloads = ["", "안녕 😀", "x" * 125, "y" * 126, "z" * 65_535, "a" * 65_536, *(str(n) for n in range(500))]
    async with served.connected() as (ear, client):
        ear.protocol.send_texts([payload.encode() for payload in payloads])
        ear.protocol.send_texts([])
        ear.protocol.send_texts([b"last"])

        assert [await client.recv() for _ in payloads] == payloads
        assert await client.recv() == "last"


async def test_pongs_and_messages_do_not_mix_up(served: Served) -> None:
    async with served.connected() as (ear, client):
        pong = await client.ping()
        ear.protocol.send_texts([b"one"])

        assert await client.recv() == "one"
        async with asyncio.timeout(WAIT_S):
            await pong


# The reader


async def test_messages_reach_the_receiver_in_order(served: Served) -> None:
    async with served.connected() as (ear, client):
        for text in ("one", "둘", "x" * MAX_FRAME_BYTES):
            await client.send(text)
        await client.send(b"binary")
        await ear.until_heard(4)

    assert ear.texts == ["one", "둘", "x" * MAX_FRAME_BYTES]
    assert ear.num_binary == 1


async def test_what_came_before_the_receiver_is_handed_over_in_order() -> None:
    async with serving(attach_at_once=False) as served, served.early() as client:
        for number in range(20):
            await client.send(str(number))
        ear = await served.ears.get()
        await ear.until_read()
        served.may_attach.set()
        await ear.until_heard(20)
        await client.send("20")
        await ear.until_heard()

    assert ear.texts == [str(number) for number in range(21)]


async def test_a_receiver_that_is_full_of_what_came_before_it_reads_no_more() -> None:
    async with serving(attach_at_once=False, is_full=True) as served, served.early() as client:
        await client.send("first")
        ear = await served.ears.get()
        await ear.until_read()
        served.may_attach.set()
        await ear.until_heard()
        await client.send("second")
        ear.protocol.send_texts([b"still there"])
        await client.recv()
        heard_while_full = list(ear.texts)

        ear.protocol.resume_reading()
        await ear.until_heard()

    assert heard_while_full == ["first"]
    assert ear.texts == ["first", "second"]


async def test_a_client_that_left_before_the_receiver_came_is_lost_at_once() -> None:
    async with serving(attach_at_once=False) as served:
        async with served.early():
            pass
        ear = await served.ears.get()
        await ear.until_gone()
        served.may_attach.set()
        await ear.until_lost()

    assert ear.num_lost == 1


async def test_nothing_is_read_while_the_receiver_is_full_and_nothing_is_lost(served: Served) -> None:
    async with served.connected() as (ear, client):
        ear.is_full = True
        await client.send("first")
        await ear.until_heard()
        for number in range(50):
            await client.send(str(number))
        ear.protocol.send_texts([b"still there"])
        await client.recv()
        heard_while_full = list(ear.texts)

        ear.is_full = False
        ear.protocol.resume_reading()
        await ear.until_heard(50)

    assert heard_while_full == ["first"]
    assert ear.texts == ["first", *(str(number) for number in range(50))]


async def test_a_message_of_as_many_fragments_as_allowed_is_one_message() -> None:
    async with serving(ConnectionLimits(max_fragments=8)) as served, served.connected() as (ear, client):
        await client.send(["x"] * 7)  # and an empty last one
        await ear.until_heard()

    assert ear.texts == ["x" * 7]


async def test_a_message_of_more_fragments_ends_the_connection() -> None:
    async with serving(ConnectionLimits(max_fragments=8)) as served, served.connected() as (ear, client):
        await client.send(["x"] * 8)

        assert await closed(client) == (1008, "more than 8 fragments")
        await ear.until_lost()

    assert ear.texts == []


async def test_a_peer_that_goes_on_with_fragments_after_the_close_is_not_gathered() -> None:
    async with serving(ConnectionLimits(max_fragments=8)) as served, served.raw() as (ear, client):
        flood = frame(0x1, b"x" * 100, fin=False) + frame(0x0, b"x" * 100, fin=False) * 500
        await asyncio.get_running_loop().sock_sendall(client, flood)
        await ear.until_gone()

        assert ear.protocol.frames == []
        assert ear.num_lost == 1


async def test_a_frame_that_is_too_big_ends_the_connection(served: Served) -> None:
    async with served.connected() as (ear, client):
        await client.send("x" * (MAX_FRAME_BYTES + 1))

        assert (await closed(client))[0] == 1009
        await ear.until_lost()

    assert ear.texts == []


async def test_text_that_is_no_utf_8_ends_the_connection(served: Served) -> None:
    async with served.connected() as (ear, client):
        await client.send(b"\xff", text=True)

        assert (await closed(client))[0] == 1007
        await ear.until_lost()


@pytest.mark.parametrize("garbage", [b"\xff" * 50, b"\x81\x05hello", frame(0x3), frame(0x0, b"x")])
async def test_frames_against_the_rules_end_the_connection(served: Served, garbage: bytes) -> None:
    async with served.raw() as (ear, client):
        await asyncio.get_running_loop().sock_sendall(client, garbage)
        await ear.until_gone()

    assert (ear.texts, ear.num_lost) == ([], 1)


# Pings


async def test_pings_within_the_rate_are_answered(served: Served) -> None:
    async with served.connected() as (_, client):
        pongs = [await client.ping() for _ in range(20)]

        async with asyncio.timeout(WAIT_S):
            for pong in pongs:
                await pong


async def test_a_flood_of_pings_ends_the_connection(served: Served) -> None:
    async with served.connected() as (ear, client):
        # In one go: who sends them one by one on a slow machine is within the rate.
        for number in range(25):
            client.protocol.send_ping(str(number).encode())
        client.transport.write(b"".join(client.protocol.data_to_send()))

        assert await closed(client) == (1008, "too many pings")
        await ear.until_lost()


async def test_a_flood_that_goes_on_after_the_close_piles_nothing_up(served: Served) -> None:
    async with served.raw() as (ear, client):
        await asyncio.get_running_loop().sock_sendall(client, frame(0x9, b"x" * 120) * 3000)
        await ear.until_lost()
        unsent = ear.protocol.transport.get_write_buffer_size()
        await ear.until_gone()

    assert sum(map(len, ear.protocol.conn.writes)) < 1000
    assert unsent < 10_000


# Clients that do not read


async def test_a_client_that_never_reads_is_closed_and_its_memory_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """P7."""
    monkeypatch.setattr(server.websocket_protocol, "CLOSE_GRACE_S", 0.05)
    limits = ConnectionLimits(max_output_bytes=500_000, socket_buffer_bytes=16_384)
    async with serving(limits) as served, served.raw() as (ear, _):
        transport = ear.protocol.transport
        most_unsent = num_sent = 0
        while not ear.is_lost.is_set():
            ear.protocol.send_texts([b"x" * 10_000])
            num_sent += 1
            most_unsent = max(most_unsent, transport.get_write_buffer_size())
            assert num_sent < 10_000
            await asyncio.sleep(0)
        ear.protocol.send_texts([b"x" * 10_000])
        after_close = transport.get_write_buffer_size()
        await ear.until_gone()

    assert 500_000 < most_unsent < 515_000
    assert after_close <= most_unsent
    assert transport.get_write_buffer_size() == 0
    assert ear.num_lost == 1


async def test_a_client_that_falls_behind_is_congested_until_it_has_caught_up() -> None:
    limits = ConnectionLimits(congested_bytes=50_000, socket_buffer_bytes=16_384, max_output_bytes=10_000_000)
    async with serving(limits) as served, served.raw() as (ear, client):
        was_congested = ear.protocol.is_congested
        ear.protocol.send_texts([b"x" * 1_000_000])
        is_congested = ear.protocol.is_congested

        num_read = 0
        async with asyncio.timeout(WAIT_S):
            while num_read < 1_000_010:
                num_read += len(await asyncio.get_running_loop().sock_recv(client, 65_536))
            await ear.is_drained.wait()

        assert (was_congested, is_congested, ear.protocol.is_congested) == (False, True, False)
        assert (ear.num_drained, ear.num_lost) == (1, 0)


async def test_a_client_that_stays_behind_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """P7."""
    monkeypatch.setattr(server.websocket_protocol, "CLOSE_GRACE_S", 0.05)
    limits = ConnectionLimits(congested_bytes=50_000, socket_buffer_bytes=16_384, max_congestion_s=0.05)
    async with serving(limits) as served, served.raw() as (ear, _):
        ear.protocol.send_texts([b"x" * 900_000])
        lost_at_once = ear.is_lost.is_set()
        await ear.until_gone()

    assert not lost_at_once
    assert ear.num_lost == 1
    assert not ear.protocol.is_congested


# Closing


async def test_a_close_comes_after_what_was_sent_and_only_once(served: Served) -> None:
    async with served.connected() as (ear, client):
        ear.protocol.send_texts([b"last words"])
        ear.protocol.close(4001, "superseded")
        ear.protocol.close(1011, "again")
        ear.protocol.send_texts([b"too late"])

        assert await client.recv() == "last words"
        assert await closed(client) == (4001, "superseded")
        await ear.until_gone()

    assert ear.num_lost == 1


async def test_a_clients_close_is_answered_and_told_once(served: Served) -> None:
    async with served.connected() as (ear, client):
        await client.close(4321, "bye")

        assert client.close_code == 4321
        await ear.until_gone()
        ear.protocol.send_texts([b"too late"])
        ear.protocol.close(1000, "")

    assert ear.num_lost == 1


async def test_a_client_that_vanishes_is_lost_once(served: Served) -> None:
    async with served.raw() as (ear, client):
        client.close()
        await ear.until_gone()
        ear.protocol.send_texts([b"too late"])

    assert ear.num_lost == 1


async def test_messages_after_our_close_are_not_heard(served: Served) -> None:
    async with served.raw() as (ear, client):
        ear.protocol.close(1000, "done")
        await asyncio.get_running_loop().sock_sendall(client, frame(0x1, b"more"))
        await ear.until_gone()

    assert ear.texts == []


async def test_a_peer_that_does_not_answer_the_close_is_cut(served: Served) -> None:
    async with served.raw() as (ear, _):
        ear.protocol.close(1000, "done")

        await ear.until_gone()


async def test_a_full_receiver_hears_of_a_close(served: Served) -> None:
    """A connection that is not read would never see the peer's answer."""
    async with served.connected() as (ear, client):
        ear.is_full = True
        await client.send("first")
        await ear.until_heard()

        ear.protocol.close_timeout = WAIT_S
        ear.protocol.close(1012, "restart")

        assert await closed(client) == (1012, "restart")
        await ear.until_gone()
        assert ear.protocol.conn.close_rcvd is not None


# The server's stop


async def test_a_stop_waits_until_the_receiver_closes(served: Served) -> None:
    async with served.connected() as (ear, client):
        served.server.should_exit = True
        async with asyncio.timeout(WAIT_S):
            await ear.is_stopping.wait()

        ear.protocol.send_texts([b"the end of the answer"])
        answer = await client.recv()
        was_lost = ear.is_lost.is_set()
        ear.protocol.close(1012, "the server restarts")

        assert (answer, was_lost) == ("the end of the answer", False)
        assert await closed(client) == (1012, "the server restarts")


async def test_a_stop_closes_a_connection_that_has_no_receiver_yet() -> None:
    async with serving(attach_at_once=False) as served, served.early() as client:
        served.server.should_exit = True

        assert (await closed(client))[0] == 1012
        served.may_attach.set()
        await (await served.ears.get()).until_lost()


async def test_a_stop_turns_away_who_is_at_the_door_and_says_when_to_come_back() -> None:
    """P7."""
    async with serving(accept_at_once=False, attach_at_once=False) as served:
        knocking = asyncio.ensure_future(served.early().__aenter__())
        async with asyncio.timeout(WAIT_S):
            await served.is_asked.wait()

            served.server.should_exit = True
            with pytest.raises(InvalidStatus) as refused:
                await knocking
        served.may_attach.set()

    assert refused.value.response.status_code == 503
    assert refused.value.response.headers["retry-after"] == "2"


async def test_a_pause_holds_also_for_what_was_read_with_the_message_that_caused_it(served: Served) -> None:
    """P7. One read holds thousands of small messages, each of which may cost a thousand times its size."""
    async with served.connected() as (ear, client):
        ear.is_full = True
        for number in range(50):
            client.protocol.send_text(str(number).encode())
        client.transport.write(b"".join(client.protocol.data_to_send()))
        await ear.until_heard()
        await client.ping()  # is not read either, so nothing waits for it
        first = list(ear.texts)
        ear.is_full = False
        ear.protocol.resume_reading()
        await ear.until_heard(49)

    assert first == ["0"]
    assert ear.texts == [str(number) for number in range(50)]


async def test_a_server_that_does_not_read_does_not_blame_the_client_for_a_missing_pong(served: Served) -> None:
    """P9."""
    async with served.connected() as (ear, client):
        ear.protocol.pause_reading()
        ear.protocol.ping_interval = 20.0
        ear.protocol.send_keepalive_ping()

        ear.protocol.keepalive_timeout()
        ear.protocol.resume_reading()
        await client.send("still here")
        await ear.until_heard()

    assert ear.texts == ["still here"]
