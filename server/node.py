"""The live sessions of one process: opened, resumed, taken over from owners that are gone, and handed over when this one stops.

A session belongs to the process that created or last claimed it, while that process renews its lease. Whoever finds a lease lapsed
adopts the sessions and goes on with their answers; a client that resumes elsewhere moves its session at once.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Protocol

import msgspec
import structlog

from engine.base import Engine
from server.feed import GONE, Connection, Feed, read_journal
from server.identifiers import new_id
from server.live import LiveSession
from sessions.config import SessionConfig
from sessions.dialogue import Dialogue
from sessions.errors import SessionError, SessionNotFound, StoreUnavailable
from sessions.journal import Journal
from sessions.limits import MAX_PROMPT_BYTES, DialogueLimits
from sessions.state import DialogueState, decode_state, encode_state
from sessions.store import LoadedSession, SessionMeta, Store, epoch_number

_log = structlog.get_logger(__name__)

_NUM_ADOPTED_AT_ONCE = 32
_OUTBOX_POLL_S = 1.0


class NodeLimits(Protocol):
    """The bounds of a node and its sessions; `server.settings.Settings` has them."""

    @property
    def max_sessions(self) -> int: ...
    @property
    def max_session_s(self) -> float: ...
    @property
    def max_items(self) -> int: ...
    @property
    def max_responses_per_session(self) -> int: ...
    @property
    def max_instructions_chars(self) -> int: ...
    @property
    def max_item_chars(self) -> int: ...
    @property
    def feedback_reasons(self) -> tuple[str, ...]: ...
    @property
    def keep_prompts(self) -> bool: ...
    @property
    def max_outbox_records(self) -> int: ...
    @property
    def resume_grace_s(self) -> float: ...
    @property
    def lease_s(self) -> float: ...


# A session's id, its user and its client.
_Whose = tuple[str, str, str]


class NodeFull(Exception):
    """The node has as many sessions as it may, or takes no more since it stops."""


class Node:
    """All live sessions of this process, and what they share. `name` is unique for each start of a process."""

    def __init__(
        self,
        *,
        store: Store,
        journal: Journal,
        engine: Engine,
        limits: NodeLimits,
        name: str,
        model_version: str,
        now_ms: Callable[[], int],
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.store = store
        self.journal = journal
        self.engine = engine
        self.name = name
        self.now_ms = now_ms
        self.resume_grace_s = limits.resume_grace_s
        # Why no new turns are taken, in words for clients; None while they are.
        self.refusal: str | None = None
        self._limits = limits
        self._model_version = model_version
        self._tasks = tasks
        self._sessions: dict[str, LiveSession] = {}
        self._claims: dict[_Whose, asyncio.Task[LiveSession | SessionError]] = {}
        self._given_up: dict[_Whose, str] = {}  # the epoch under which this node had the session
        self._num_opening = 0
        self._is_draining = False
        self._is_away = False
        self._renewed = asyncio.Event()
        self.dialogue_limits = DialogueLimits(
            max_items=limits.max_items,
            max_answers=limits.max_responses_per_session,
            max_instructions_chars=limits.max_instructions_chars,
            max_item_chars=limits.max_item_chars,
            feedback_reasons=limits.feedback_reasons,
            max_prompt_bytes=MAX_PROMPT_BYTES if limits.keep_prompts else 0,
        )

    @property
    def num_sessions(self) -> int:
        """Sessions that live here now."""
        return len(self._sessions)

    def __contains__(self, session: LiveSession) -> bool:
        return self._sessions.get(session.session_id) is session

    def find(self, session_id: str) -> LiveSession | None:
        """The session as it lives here, though another node may have claimed it by now; None when it does not."""
        return self._sessions.get(session_id)

    @property
    def is_draining(self) -> bool:
        """Whether the node takes no new sessions because it stops."""
        return self._is_draining

    def check_room(self) -> None:
        """`NodeFull` when no further session may be opened here."""
        if self._is_draining:
            raise NodeFull("The server is stopping; connect again.")
        if len(self._sessions) + self._num_opening >= self._limits.max_sessions:
            raise NodeFull("The server has no room for another session; try again soon.")

    async def open(self, *, user_id: str, client_id: str, config: SessionConfig, connection: Connection) -> LiveSession:
        """A new session for this connection, to be begun; `NodeFull` or `StoreUnavailable` when it cannot be had."""
        self.check_room()
        session_id = new_id("sess_")
        now_ms = self.now_ms()
        meta = SessionMeta(session_id, user_id, client_id, config.model, now_ms)
        self._num_opening += 1
        try:
            epoch = await self.store.create(meta, self.name)
        finally:
            self._num_opening -= 1
        dialogue = Dialogue(
            meta,
            DialogueState(config),
            new_id=new_id,
            expires_at=self._expires_at(),
            model_version=self._model_version,
            limits=self.dialogue_limits,
        )
        session = LiveSession(self, dialogue, meta=meta, epoch=epoch, feed=Feed(connection))
        self._sessions[session_id] = session
        return session

    async def resume(self, session_id: str, *, user_id: str, client_id: str) -> LiveSession:
        """That session, taken over from wherever it lived, for a connection to attach to.

        `SessionNotFound` also when it is another's; `NodeFull` or `StoreUnavailable` when it cannot be had here now.
        """
        session = self._sessions.get(session_id)
        if session is not None and not await self._still_owns(session):
            session.superseded()
            session = None
        if session is None:
            self.check_room()
            # Two connections may come for one session at once: one claim serves both, and the end of one is not the other's. Not so a
            # stranger's: the store refuses that one, which must be no answer to the session's own client.
            whose = (session_id, user_id, client_id)
            if whose not in self._claims:
                self._claims[whose] = self._tasks.create_task(self._claim(whose))
            claimed = await asyncio.shield(self._claims[whose])
            if isinstance(claimed, SessionError):
                raise claimed
            session = claimed
        if session.meta.user_id != user_id or session.meta.client_id != client_id:
            raise SessionNotFound(session_id)
        return session

    async def _still_owns(self, session: LiveSession) -> bool:
        """Whether nobody claimed it elsewhere meanwhile, which a session that says nothing learns only by and by."""
        epoch = await self.store.epoch(session.session_id)
        # A store that came back empty or older is given the session again at its next append.
        return epoch is None or epoch == session.epoch or epoch_number(epoch) < epoch_number(session.epoch)

    async def _claim(self, whose: _Whose) -> LiveSession | SessionError:
        # An error is a value here: raised in a task of the group it would end all others.
        session_id, user_id, client_id = whose
        self._num_opening += 1
        try:
            loaded = await self.store.claim(session_id, self.name, user_id=user_id, client_id=client_id)
            session = await self._take_in(loaded)
            if session.epoch == loaded.epoch:
                session.go_on()
            return session
        except SessionError as error:
            return error
        except Exception:
            _log.exception("session.not_resumed", session_id=session_id)
            return SessionNotFound(session_id)
        finally:
            self._num_opening -= 1
            del self._claims[whose]

    async def _take_in(self, loaded: LoadedSession) -> LiveSession:
        """A session that was claimed, alive here again; the one that is alive already if that was claimed later."""
        session_id = loaded.meta.session_id
        if not loaded.config:
            # Its owner died between its creation and its first event.
            loaded = msgspec.structs.replace(
                loaded, config=encode_state(DialogueState(SessionConfig(loaded.meta.model)))
            )
        try:
            events = await self._events_of_open_answers(loaded)
        except StoreUnavailable:
            self._given_up[_whose(loaded.meta)] = loaded.epoch
            raise
        dialogue = Dialogue.restore(
            loaded,
            events,
            new_id=new_id,
            expires_at=self._expires_at(),
            model_version=self._model_version,
            limits=self.dialogue_limits,
        )
        if (old := self._sessions.get(session_id)) is not None:
            # A resume and an adoption, or two adoptions of which one's reply was lost; the store knows the later epoch only.
            if epoch_number(old.epoch) > epoch_number(loaded.epoch):
                return old
            old.moved()
        feed = Feed(GONE, committed=loaded.next_sequence - 1, archived=loaded.archived_sequence)
        session = LiveSession(self, dialogue, meta=loaded.meta, epoch=loaded.epoch, feed=feed)
        self._sessions[session_id] = session
        self._given_up.pop(_whose(loaded.meta), None)
        _log.info("session.taken_over", session_id=session_id, epoch=loaded.epoch)
        return session

    async def _events_of_open_answers(self, loaded: LoadedSession) -> list[bytes]:
        first = decode_state(loaded.config).first_open_sequence
        if first is None:
            return []
        return await read_journal(self.store, loaded.meta.session_id, first, loaded.next_sequence - 1)

    def _expires_at(self) -> int:
        return self.now_ms() // 1000 + int(self._limits.max_session_s)

    def start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run an answer, or what else a session does on the side, as a task of this node."""
        return self._tasks.create_task(work)

    def remove(self, session: LiveSession) -> None:
        """Forget a session that has ended or moved."""
        if session in self:
            del self._sessions[session.session_id]

    def give_up(self, session: LiveSession) -> None:
        """Forget a session that could not be stored; it is claimed anew when the store is back."""
        self._given_up[_whose(session.meta)] = session.epoch

    async def run(self) -> None:
        """Keep the lease, and adopt sessions whose owner has lost its own; for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._adopt_after_renewals())
            while True:
                # Each on its own: neither a long adoption nor a renewal that is not answered may cost the lease.
                tasks.create_task(self._renew())
                await asyncio.sleep(self._limits.lease_s / 3)

    async def _renew(self) -> None:
        try:
            taken = await self.store.renew(self.name, self._limits.lease_s)
        except StoreUnavailable as error:
            if not self._is_away:
                _log.warning("lease.not_renewed", reason=str(error))
            self._is_away = True
            return
        self._is_away = False
        self._renewed.set()
        for session_id in taken:
            await self._hear_of_claim(session_id)

    async def _hear_of_claim(self, session_id: str) -> None:
        session = self._sessions.get(session_id)
        if session is None or _whose(session.meta) in self._claims:
            return
        try:
            # Its client may have brought it back here while the reply was on its way.
            is_ours = await self._still_owns(session)
        except StoreUnavailable:
            # The news come only once. If it is still this node's, it is claimed anew.
            if session in self:
                session.abandoned()
            return
        if not is_ours and session in self:
            session.taken()

    async def _adopt_after_renewals(self) -> None:
        outbox_due_s = 0.0
        while True:
            # A node whose lease has lapsed unnoticed may have been cut off with all the others, who would look dead to it.
            self._renewed.clear()
            await self._renewed.wait()
            try:
                await self._take_over()
                if (now_s := asyncio.get_running_loop().time()) >= outbox_due_s:
                    outbox_due_s = now_s + _OUTBOX_POLL_S
                    await self._watch_outbox()
            except StoreUnavailable as error:
                _log.warning("sessions.not_adopted", reason=str(error))

    async def _take_over(self) -> None:
        if self._is_draining:
            return
        for whose, epoch in tuple(self._given_up.items()):
            session_id = whose[0]
            # Its client may have resumed it elsewhere since, and must not be driven from there.
            is_ours = await self.store.epoch(session_id) == epoch
            if is_ours and session_id not in self._sessions and whose not in self._claims:
                with suppress(SessionNotFound):
                    await self._adopt(await self.store.claim(session_id, self.name))
            self._given_up.pop(whose, None)
        room = self._limits.max_sessions - len(self._sessions) - self._num_opening
        if room > 0:
            adopted = await self.store.adopt(self.name, min(room, _NUM_ADOPTED_AT_ONCE))
            # They are this node's by now: where the store goes away in the middle, those that are left are taken in later.
            self._given_up |= {_whose(loaded.meta): loaded.epoch for loaded in adopted}
            for loaded in adopted:
                await self._adopt(loaded)
                self._given_up.pop(_whose(loaded.meta), None)

    async def _adopt(self, loaded: LoadedSession) -> None:
        try:
            session = await self._take_in(loaded)
        except StoreUnavailable:
            raise
        except Exception:
            # A session that cannot be read must not keep the others from being adopted, nor the lease from being renewed.
            _log.exception("session.not_adopted", session_id=loaded.meta.session_id)
            return
        if session.epoch != loaded.epoch:
            return
        if session.is_resumable:
            session.go_on()
        else:
            session.close_down()

    async def _watch_outbox(self) -> None:
        most = self._limits.max_outbox_records
        pending = (await self.store.lag()).pending
        is_full = pending >= most
        if is_full != (self.refusal is not None):
            _log.warning("outbox.full" if is_full else "outbox.has_room", pending=pending)
        self.refusal = "What was said cannot be stored for good now; try again in a minute." if is_full else None

    def drain(self) -> None:
        """Take no new sessions from here on."""
        self._is_draining = True

    def shut_down(self) -> None:
        """The grace is over: close every connection that is still here. Sessions that can be resumed are left for other nodes."""
        self.drain()
        for session in tuple(self._sessions.values()):
            session.hand_over()

    async def surrender(self) -> None:
        """After the last commit: let other nodes adopt at once what this one leaves."""
        try:
            await self.store.surrender(self.name)
        except StoreUnavailable as error:
            _log.warning("lease.not_surrendered", reason=str(error))


def _whose(meta: SessionMeta) -> _Whose:
    return meta.session_id, meta.user_id, meta.client_id
