"""One connection to Redis, used by one call at a time; a call costs little, since every token of an answer waits for one.

redis-py connects and says hello (TLS, AUTH, SELECT); from then on the socket's bytes are ours. Nothing here sends a command twice.
"""

import asyncio
import hashlib
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import hiredis
from redis._parsers import BaseParser
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, NoScriptError, RedisError

from sessions.errors import StoreUnavailable

Command = tuple[str | bytes | int, ...]

# What hiredis returns while a reply is not all there; None and False are replies.
_UNFINISHED = object()
# Timers go off up to a millisecond early.
_TIMER_SLACK_S = 0.001


class Script:
    """A Lua script and the digest under which Redis knows it."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.digest = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class RedisLine:
    """One connection, opened when first needed, used by one call at a time. `connection` is the line's own from here on.

    A call that is cut short, by its time or by cancellation, drops the connection: its reply may still come, and nobody else may read it.
    The next call opens another.
    """

    def __init__(self, connection: AbstractConnection, timeout_s: float) -> None:
        self._connection = connection
        # redis-py's own limit is an `asyncio.wait_for`, which in Python 3.11 can lose our cancellation as it says hello.
        connection.socket_timeout = None
        self._timeout_s = timeout_s
        self._wire: _Wire | None = None
        self._turn = asyncio.Lock()
        self._num_users = 0

    async def close(self) -> None:
        """Close the connection once the call in progress is over."""
        self._num_users += 1
        try:
            async with self._turn:
                self._cut()
                # A Redis that hangs cannot keep us: the socket is closed anyway.
                with suppress(RedisError):
                    await self._connection.disconnect()
        finally:
            self._num_users -= 1

    async def ask(self, *commands: Command, wait_s: float = 0.0) -> list[Any]:
        """The replies to these commands, sent at once; raises the first that is an error. `wait_s` is how long Redis itself may wait."""
        # hiredis' stub means a tuple of any length.
        packed = [hiredis.pack_command(command) for command in commands]  # type: ignore[arg-type]
        deadline = asyncio.get_running_loop().time() + self._timeout_s + wait_s
        self._num_users += 1
        try:
            replies = await self._exchange(packed, deadline)
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable(f"Redis does not answer: {type(error).__name__}") from error
        finally:
            self._num_users -= 1
        for reply in replies:
            if isinstance(reply, NoScriptError):
                raise reply
            if isinstance(reply, RedisError):
                raise StoreUnavailable(f"Redis refused: {reply}") from reply
        return replies

    async def run(self, script: Script, *calls: Command) -> list[Any]:
        """The script's reply to each call: the key first, then the arguments."""
        commands = [("EVALSHA", script.digest, 1, *call) for call in calls]
        try:
            return await self.ask(*commands)
        except NoScriptError:
            # A new Redis, or SCRIPT FLUSH. None of the calls ran.
            await self.ask(("SCRIPT", "LOAD", script.source))
            try:
                return await self.ask(*commands)
            except NoScriptError as error:
                raise StoreUnavailable("Redis does not keep scripts") from error

    async def _exchange(self, packed: Sequence[bytes], deadline: float) -> list[Any]:
        wire = self._wire
        if self._num_users == 1 and wire is not None and wire.is_open():
            # Nobody else is here: this does not wait, and so needs no limit.
            await self._turn.acquire()
        else:
            wire = await self._take_turn(deadline)
        try:
            return await wire.exchange(packed, deadline)
        except BaseException:
            await self._drop()
            raise
        finally:
            self._turn.release()

    async def _take_turn(self, deadline: float) -> "_Wire":
        async with asyncio.timeout_at(deadline):
            await self._turn.acquire()
            try:
                if self._wire is None or not self._wire.is_open():
                    await self._drop()
                    self._wire = await _connect(self._connection)
                return self._wire
            except BaseException:
                await self._drop()
                self._turn.release()
                raise

    async def _drop(self) -> None:
        self._cut()
        await self._connection.disconnect(nowait=True)

    def _cut(self) -> None:
        if self._wire is not None:
            self._wire.abort()
            self._wire = None


async def _connect(connection: AbstractConnection) -> "_Wire":
    await connection.connect()  # type: ignore[no-untyped-call]
    # No await from here on that waits: bytes that came now would be lost between the two readers.
    if await connection.can_read() or connection._writer is None:
        raise InvalidResponse("Redis sent more than it was asked for")
    return _Wire(connection._writer.transport)


class _Wire(asyncio.Protocol):
    """An open connection, taken over from redis-py: sends commands and collects as many replies, once at a time.

    An exchange that fails leaves the wire in a state where only `abort` may follow.
    """

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._reader = hiredis.Reader(InvalidResponse, self._read_error, notEnoughData=_UNFINISHED)
        self._lost = False
        self._refusal: RedisError | None = None
        self._replies: list[Any] = []
        self._num_wanted = 0
        self._answer: asyncio.Future[list[Any]] | None = None
        # One timer for many exchanges: it looks at the deadline of the one that is going on when it goes off.
        self._deadline = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._former = transport.get_protocol()
        transport.set_protocol(self)

    def is_open(self) -> bool:
        """Whether it can be written to, as far as is known."""
        return not (self._lost or self._transport.is_closing())

    def exchange(self, packed: Sequence[bytes], deadline: float) -> asyncio.Future[list[Any]]:
        """Send the commands; their replies, errors among them. `TimeoutError` when they are not there at `deadline` (the loop's time)."""
        self._replies = []
        self._num_wanted = len(packed)
        self._deadline = deadline
        self._answer = answer = self._loop.create_future()
        self._transport.writelines(packed)
        if deadline < self._timer_at:
            self._set_timer(deadline)
        return answer

    def abort(self) -> None:
        """Close at once, and send no more of what was not sent yet."""
        self._lost = True
        if self._timer is not None:
            self._timer.cancel()
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        answer, replies, reader = self._answer, self._replies, self._reader
        if answer is None:
            # Nobody asked: it must not be taken for the reply to what is asked next.
            self.abort()
            return
        try:
            reader.feed(data)
            while len(replies) < self._num_wanted:
                if (reply := reader.gets()) is _UNFINISHED:
                    return
                replies.append(reply)
        except RedisError as error:
            self._fail(error)
            return
        if self._refusal is not None or reader.has_data():
            self._fail(self._refusal or InvalidResponse("Redis sent more than it was asked for"))
            return
        self._answer = None
        if not answer.done():
            answer.set_result(replies)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        # redis-py waits for it in `disconnect`.
        self._former.connection_lost(exc)
        error = self._refusal or RedisConnectionError("Redis closed the connection")
        error.__cause__ = exc
        self._fail(error)

    def _read_error(self, message: str) -> RedisError:
        error: RedisError = BaseParser.parse_error(message)  # type: ignore[no-untyped-call]
        if isinstance(error, RedisConnectionError):
            # LOADING, NOAUTH, too many clients: not about the command but about the connection, which another may have better.
            self._refusal = error
        return error

    def _fail(self, error: Exception) -> None:
        self.abort()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._check_deadline)

    def _check_deadline(self) -> None:
        self._timer, self._timer_at = None, math.inf
        if self._answer is None:
            return
        if self._loop.time() + _TIMER_SLACK_S < self._deadline:
            self._set_timer(self._deadline)
        else:
            self._fail(TimeoutError())
