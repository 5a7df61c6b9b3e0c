"""One connection to Redis: what a call promises when it is cut short, when Redis hangs, dies or says something odd."""

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import uvloop
from redis import Redis as BlockingRedis
from redis.asyncio import Redis
from redis.asyncio.connection import ConnectionPool

from sessions.errors import StoreUnavailable
from sessions.redis_line import RedisLine, Script
from tests.certificates import write_certificate
from tests.services import RedisServer, free_port, redis_server, tcp_proxy

_OWN_ID = ("CLIENT", "ID")


@asynccontextmanager
async def open_line(url: str, *, timeout_s: float = 10.0) -> AsyncIterator[RedisLine]:
    """A line whose only time limit is its own."""
    connection = ConnectionPool.from_url(url, protocol=2, socket_connect_timeout=60).make_connection()  # type: ignore[no-untyped-call]
    line = RedisLine(connection, timeout_s)
    try:
        yield line
    finally:
        await line.close()


@contextmanager
def unanswered_port() -> Iterator[int]:
    """A port that drops whoever wants to connect, without a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        # Fills the queue of those who wait to be accepted; nobody will be.
        with socket.create_connection(address):
            port: int = address[1]
            yield port


async def wait_blocked(redis: Redis, number: int) -> None:
    """Return when that many clients are blocked in Redis."""
    while (await redis.info("clients"))["blocked_clients"] != number:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def wait_alone(redis: Redis) -> None:
    """Return when Redis has no connection but this client's."""
    while len(await redis.client_list()) > 1:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def test_replies_come_in_the_order_of_the_commands(own_redis: RedisServer) -> None:
    async with open_line(own_redis.url) as line:
        replies = await line.ask(("SET", "key", b"\x00\r\n"), ("GET", "key"), ("GET", "none"), ("STRLEN", "key"))

    assert replies == [b"OK", b"\x00\r\n", None, 3]


async def test_one_refused_command_hides_no_other_reply(own_redis: RedisServer) -> None:
    async with open_line(own_redis.url) as line:
        (before,) = await line.ask(_OWN_ID)

        with pytest.raises(StoreUnavailable, match="refused: WRONGTYPE"):
            await line.ask(("SET", "text", "a"), ("LPUSH", "text", "b"), ("LPUSH", "text", "c"), ("SET", "after", "d"))

        assert await line.ask(("MGET", "text", "after"), _OWN_ID) == [[b"a", b"d"], before]


@pytest.mark.parametrize("error", ["READONLY You can't write", "OOM used memory > 'maxmemory'", "MISCONF no disk"])
async def test_a_redis_that_cannot_write_is_unavailable(own_redis: RedisServer, error: str) -> None:
    async with open_line(own_redis.url) as line:
        (before,) = await line.ask(_OWN_ID)

        with pytest.raises(StoreUnavailable, match=error.split()[-1]):
            await line.ask(("PING",), ("EVAL", f'return redis.error_reply("{error}")', 0))

        assert await line.ask(_OWN_ID) == [before]


@pytest.mark.parametrize(("error", "name"), [("LOADING", "BusyLoadingError"), ("NOAUTH", "AuthenticationError")])
async def test_a_connection_that_redis_does_not_want_is_given_up(own_redis: RedisServer, error: str, name: str) -> None:
    async with open_line(own_redis.url) as line:
        (before,) = await line.ask(_OWN_ID)

        with pytest.raises(StoreUnavailable, match=name):
            await line.ask(("EVAL", f"return redis.error_reply('{error} not now')", 0), ("PING",))

        assert await line.ask(_OWN_ID) != [before]


async def test_a_script_is_loaded_when_redis_does_not_know_it(own_redis: RedisServer) -> None:
    script = Script("return {KEYS[1], ARGV[1]}")

    async with open_line(own_redis.url) as line:
        first = await line.run(script, ("a", 1), ("b", 2))
        await line.ask(("SCRIPT", "FLUSH"))
        second = await line.run(script, ("c", 3))

    assert (first, second) == ([[b"a", b"1"], [b"b", b"2"]], [[b"c", b"3"]])


async def test_values_of_many_megabytes_go_both_ways(own_redis: RedisServer) -> None:
    value = bytes(range(256)) * 131_072

    async with open_line(own_redis.url) as line:
        set_, *echoes = await line.ask(("SET", "large", value), *(("ECHO", b"%d" % n * 5000) for n in range(1000)))
        (got,) = await line.ask(("GET", "large"))

    assert set_ == b"OK"
    assert got == value
    assert echoes == [b"%d" % n * 5000 for n in range(1000)]


async def test_calls_at_once_each_get_their_own_reply(own_redis: RedisServer) -> None:
    async with open_line(own_redis.url) as line:
        replies = await asyncio.gather(*(line.ask(("ECHO", f"{n}"), ("ECHO", f"-{n}")) for n in range(200)))

    assert replies == [[b"%d" % n, b"-%d" % n] for n in range(200)]


async def test_a_call_out_of_time_leaves_its_replies_to_nobody(own_redis: RedisServer) -> None:
    """The first of two replies is there when the time is up; the second comes later."""
    async with open_line(own_redis.url, timeout_s=0.3) as line, Redis.from_url(own_redis.url) as redis:
        await line.ask(("PING",), wait_s=60)
        async with asyncio.timeout(60):
            with pytest.raises(StoreUnavailable) as caught:
                await line.ask(("ECHO", "early"), ("BLPOP", "queue", 0))
        mine = asyncio.ensure_future(line.ask(("ECHO", "mine"), wait_s=60))
        await redis.lpush("queue", "late")

        assert isinstance(caught.value.__cause__, TimeoutError)
        assert await mine == [b"mine"]


async def test_a_cancelled_call_leaves_its_replies_to_nobody(own_redis: RedisServer) -> None:
    async with open_line(own_redis.url) as line, Redis.from_url(own_redis.url) as redis:
        call = asyncio.ensure_future(line.ask(("ECHO", "early"), ("BLPOP", "queue", 0)))
        await wait_blocked(redis, 1)

        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        mine = asyncio.ensure_future(line.ask(("ECHO", "mine")))
        await redis.lpush("queue", "late")

        assert await mine == [b"mine"]
        # Its connection is gone, not only put aside.
        assert len(await redis.client_list()) == 2


async def test_cancelled_in_any_round_of_the_loop_a_call_leaves_nothing_behind(own_redis: RedisServer) -> None:
    """Before it is sent, while it waits, in the very moment of its reply, and while it connects."""
    async with open_line(own_redis.url) as line, Redis.from_url(own_redis.url) as redis:
        for number in range(40):
            call = asyncio.ensure_future(line.ask(("ECHO", "cut"), ("ECHO", "cut")))
            for _ in range(number):
                await asyncio.sleep(0)
            call.cancel()
            if number % 3:
                assert await line.ask(("ECHO", f"{number}")) == [f"{number}".encode()]
            await asyncio.gather(call, return_exceptions=True)

        await line.close()
        await wait_alone(redis)


async def test_a_reply_that_comes_just_after_the_cancellation_is_no_error(own_redis: RedisServer) -> None:
    loop = asyncio.get_running_loop()
    reported: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))
    async with open_line(own_redis.url) as line:
        await line.ask(("PING",))
        call = asyncio.ensure_future(line.ask(("ECHO", "cut")))
        await asyncio.sleep(0)
        # The loop stands still: when another client had its second reply, ours is in the socket, to be read right after the cancellation.
        with BlockingRedis.from_url(own_redis.url) as blocking:
            blocking.ping()
            blocking.ping()
        loop.call_soon(call.cancel)
        with pytest.raises(asyncio.CancelledError):
            await call

        assert await line.ask(("ECHO", "mine")) == [b"mine"]
    assert reported == []


async def test_a_lost_reply_is_an_error_and_its_command_was_sent_once(own_redis: RedisServer) -> None:
    """P3."""
    async with tcp_proxy(own_redis.port) as proxy, open_line(f"redis://127.0.0.1:{proxy.port}") as line:
        await line.ask(("SET", "count", 0))

        proxy.lose_next_reply()
        with pytest.raises(StoreUnavailable) as caught:
            await line.ask(("INCR", "count"))

        assert "ConnectionError" in str(caught.value)
        assert await line.ask(("GET", "count")) == [b"1"]


async def test_a_connection_that_was_lost_between_calls_is_replaced_unnoticed(own_redis: RedisServer) -> None:
    async with open_line(own_redis.url) as line:
        await line.ask(("SET", "key", "kept"))
        own_redis.kill()
        own_redis.start()
        # One round to read the end of the old connection.
        for _ in range(2):
            await asyncio.sleep(0)

        assert await line.ask(("GET", "key")) == [b"kept"]


async def test_a_redis_killed_in_a_call_is_unavailable_until_it_is_back(own_redis: RedisServer) -> None:
    async with open_line(own_redis.url) as line:
        async with Redis.from_url(own_redis.url) as redis:
            call = asyncio.ensure_future(line.ask(("BLPOP", "queue", 0)))
            await wait_blocked(redis, 1)
        own_redis.kill()

        with pytest.raises(StoreUnavailable):
            await call
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await line.ask(("PING",))
        own_redis.start()

        assert await line.ask(("PING",)) == [b"PONG"]


async def test_a_redis_that_hangs_is_unavailable_in_time_and_the_line_recovers(own_redis: RedisServer) -> None:
    """P9: at once, while it waits for its turn, and while it connects again."""
    async with open_line(own_redis.url, timeout_s=0.3) as line:
        await line.ask(("PING",), wait_s=60)
        own_redis.pause()

        async with asyncio.timeout(60):
            answers = await asyncio.gather(*(line.ask(("PING",)) for _ in range(5)), return_exceptions=True)
            with pytest.raises(StoreUnavailable):
                await line.ask(("PING",))
        own_redis.resume()

        assert {type(answer) for answer in answers} == {StoreUnavailable}
        async with asyncio.timeout(60):
            # What it was sent while it hung comes first.
            while True:
                try:
                    assert await line.ask(("ECHO", "back"), wait_s=10) == [b"back"]
                    break
                except StoreUnavailable:
                    continue


async def test_a_redis_that_lets_nobody_connect_is_unavailable_in_time() -> None:
    with unanswered_port() as port:
        async with open_line(f"redis://127.0.0.1:{port}", timeout_s=0.3) as line, asyncio.timeout(60):
            with pytest.raises(StoreUnavailable) as caught:
                await line.ask(("PING",))

    assert isinstance(caught.value.__cause__, TimeoutError)


async def test_a_call_may_take_as_long_as_redis_may_wait(own_redis: RedisServer) -> None:
    async with open_line(own_redis.url, timeout_s=0.5) as line:
        assert await line.ask(("BLPOP", "queue", "0.8"), wait_s=60) == [None]


async def test_each_call_has_its_own_time(own_redis: RedisServer) -> None:
    """Neither the long time of an earlier call nor the end of an earlier call's time is its own."""
    async with open_line(own_redis.url, timeout_s=2) as line:
        await line.ask(("PING",), wait_s=60)
        async with asyncio.timeout(30):
            with pytest.raises(StoreUnavailable):
                await line.ask(("BLPOP", "queue", 0))

        # The last still waits when the first one's time would be up, and each is far from the end of its own.
        for _ in range(8):
            assert await line.ask(("BLPOP", "queue", "0.3")) == [None]


async def test_a_call_that_waits_for_its_turn_has_its_own_time_too(own_redis: RedisServer) -> None:
    async with open_line(own_redis.url, timeout_s=0.3) as line, Redis.from_url(own_redis.url) as redis:
        (before,) = await line.ask(_OWN_ID, wait_s=60)
        long = asyncio.ensure_future(line.ask(("BLPOP", "queue", 0), wait_s=60))
        await wait_blocked(redis, 1)

        async with asyncio.timeout(30):
            with pytest.raises(StoreUnavailable):
                await line.ask(("PING",))
        waiting = asyncio.ensure_future(line.ask(("PING",)))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await redis.lpush("queue", "value")

        # Who gives up waiting does not disturb who does not.
        assert await long == [[b"queue", b"value"]]
        assert await line.ask(_OWN_ID, wait_s=60) == [before]


async def test_closing_waits_for_the_call_in_progress_and_leaves_no_connection(own_redis: RedisServer) -> None:
    async def call_twice(line: RedisLine) -> list[object]:
        return [*await line.ask(("BLPOP", "queue", 0)), *await line.ask(("PING",))]

    async with open_line(own_redis.url) as line, Redis.from_url(own_redis.url) as redis:
        calls = asyncio.ensure_future(call_twice(line))
        await wait_blocked(redis, 1)
        closing = asyncio.ensure_future(line.close())
        await asyncio.sleep(0)
        await redis.lpush("queue", "value")

        # The second comes after the closing, on a connection of its own.
        assert await calls == [[b"queue", b"value"], b"PONG"]
        await closing
        await line.close()
        await wait_alone(redis)


async def test_closing_is_not_kept_by_a_redis_that_hangs(own_redis: RedisServer) -> None:
    async with asyncio.timeout(60), open_line(own_redis.url, timeout_s=600) as line:
        await line.ask(("PING",))
        own_redis.pause()
    own_redis.resume()


async def test_a_reply_too_many_is_taken_for_no_other(own_redis: RedisServer) -> None:
    """A subscription answers once for each channel."""
    async with open_line(own_redis.url) as line:
        with pytest.raises(StoreUnavailable):
            await line.ask(("SUBSCRIBE", "a", "b"))

        assert await line.ask(("ECHO", "mine")) == [b"mine"]


async def test_a_message_that_nobody_asked_for_ends_the_connection(own_redis: RedisServer) -> None:
    async with open_line(own_redis.url) as line, Redis.from_url(own_redis.url) as redis:
        await line.ask(("SUBSCRIBE", "a"))
        await redis.publish("a", "news")
        await wait_alone(redis)

        assert await line.ask(("ECHO", "mine")) == [b"mine"]


@pytest.mark.parametrize(
    "scenario",
    [
        test_values_of_many_megabytes_go_both_ways,
        test_calls_at_once_each_get_their_own_reply,
        test_a_call_out_of_time_leaves_its_replies_to_nobody,
        test_a_cancelled_call_leaves_its_replies_to_nobody,
        test_cancelled_in_any_round_of_the_loop_a_call_leaves_nothing_behind,
        test_a_reply_that_comes_just_after_the_cancellation_is_no_error,
        test_a_lost_reply_is_an_error_and_its_command_was_sent_once,
        test_a_connection_that_was_lost_between_calls_is_replaced_unnoticed,
        test_a_redis_killed_in_a_call_is_unavailable_until_it_is_back,
        test_a_redis_that_hangs_is_unavailable_in_time_and_the_line_recovers,
        test_each_call_has_its_own_time,
        test_a_call_that_waits_for_its_turn_has_its_own_time_too,
        test_closing_waits_for_the_call_in_progress_and_leaves_no_connection,
        test_a_reply_too_many_is_taken_for_no_other,
        test_a_message_that_nobody_asked_for_ends_the_connection,
    ],
)
def test_the_same_holds_on_the_loop_that_serves(
    own_redis: RedisServer, scenario: Callable[[RedisServer], Awaitable[None]]
) -> None:
    async def check() -> None:
        await scenario(own_redis)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    uvloop.run(check())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_redis_is_reached_by_tls_with_a_password_and_a_database(
    own_redis: RedisServer, tmp_path: Path, run: Callable[[Awaitable[None]], None]
) -> None:
    certificate = write_certificate(tmp_path, "redis")
    port = free_port()

    async def check() -> None:
        async with Redis.from_url(own_redis.url) as redis:
            await redis.config_set(
                "tls-cert-file", str(certificate), "tls-key-file", str(certificate), "tls-auth-clients", "no"
            )
            await redis.config_set("tls-port", port)
            await redis.config_set("requirepass", "secret")
        url = f"rediss://:secret@127.0.0.1:{port}/3?ssl_ca_certs={certificate}"
        value = bytes(range(256)) * 32_768

        async with open_line(url, timeout_s=2) as line:
            assert await line.ask(("SET", "key", value), ("GET", "key"), wait_s=60) == [b"OK", value]
            with pytest.raises(StoreUnavailable):
                await line.ask(("BLPOP", "queue", 0))
            (listed,) = await line.ask(("CLIENT", "LIST"), wait_s=60)
            own_redis.kill()
            with pytest.raises(StoreUnavailable):
                await line.ask(("PING",))
        async with open_line(url.replace("secret", "wrong")) as line:
            with pytest.raises(StoreUnavailable):
                await line.ask(("PING",))

        assert b"db=3" in listed
        assert len(listed.splitlines()) == 1

    run(check())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_redis_is_reached_by_its_unix_socket(run: Callable[[Awaitable[None]], None]) -> None:
    async def check(server: RedisServer) -> None:
        async with open_line(server.unix_url) as line:
            assert await line.ask(("PING",)) == [b"PONG"]
            server.kill()
            with pytest.raises(StoreUnavailable):
                await line.ask(("PING",))
            server.start()
            assert await line.ask(("PING",)) == [b"PONG"]

    # A socket's path is short.
    with tempfile.TemporaryDirectory() as directory, redis_server(Path(directory), unix_socket=True) as server:
        run(check(server))
