"""One session with all that is known of it, for staff: from the tables, the recording, and the store where the writer was not yet."""

from collections.abc import Sequence
from typing import Literal

from msgspec import UNSET, Raw, Struct, UnsetType

from persistence.errors import ArchiveUnavailable
from persistence.feedback import StoredFeedback, feedback_of_session
from persistence.history import StoredPrediction, StoredTurn, load_dialogue
from persistence.masking import Mask
from persistence.notes import StoredNote, notes_of_session
from persistence.recording import Extent, Hole
from persistence.summaries import Summary
from persistence.waterfall import Step, waterfall
from server.api.at_once import at_once
from server.api.summary import summary_of
from server.services import Services
from sessions.store import SessionMeta

# What is not as it should be: the tables do not know the session yet; the archive cannot be reached now; events cannot be shown.
Warning = Literal["not_stored_yet", "archive_unavailable", "events_missing"]


# Each prompt holds all that was said before it: of a long session they would be hundreds of megabytes. The others are had one by one.
MAX_PROMPT_CHARS = 4 * 1024 * 1024


class ExtentView(Struct, frozen=True):
    """`Extent`, without whose session it is."""

    first_sequence: int
    last_sequence: int
    first_ms: int
    last_ms: int
    num_events: int
    is_live: bool
    holes: tuple[Hole, ...]


class AnswerView(Struct, frozen=True, kw_only=True):
    """One answer and how it came to be; what a release before traces did not keep is null.

    `prompt_chars`: the length of the kept prompt. Where it is told and `prompt` is null, `GET …/prompts/{response_id}` has it.
    """

    response_id: str
    turn_id: str | None
    model: str
    model_version: str
    prompt_version: str | None
    persona: str | None
    status: str
    status_reason: str | None
    error: str | None
    text: str
    output: Raw
    request: Raw
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    created_ms: int
    first_token_ms: int | None
    done_ms: int
    sent_chars: int | None
    heard_text: str | None
    heard_chars: int | None
    prompt: str | None
    prompt_chars: int | None
    prompt_format: str | None
    sampling: Raw | None
    waterfall: Sequence[Step]


class WholeSession(Struct, frozen=True, kw_only=True):
    """The answer. `extent` is None while the archive cannot be reached; `warnings` say what is not as it should be.

    `masked`: personal data in it is covered.
    """

    session: Summary
    extent: ExtentView | None
    turns: Sequence[StoredTurn]
    answers: list[AnswerView]
    feedback: Sequence[StoredFeedback]
    notes: Sequence[StoredNote]
    warnings: list[Warning]
    audit_id: str | None = None
    masked: Literal[True] | UnsetType = UNSET


async def whole_session(services: Services, meta: SessionMeta, mask: Mask) -> WholeSession:
    """All of it, what is cut short as `mask` leaves it. The errors of a store or a database that is away go through."""
    warnings: list[Warning] = []
    # Each waits for the database more than it computes.
    async with at_once() as tasks:
        measuring = tasks.create_task(_extent_of(services, meta))
        loading = tasks.create_task(
            load_dialogue(services.database, meta.session_id, max_prompt_chars=MAX_PROMPT_CHARS)
        )
        summarizing = tasks.create_task(summary_of(services, meta, mask))
        listing_feedback = tasks.create_task(feedback_of_session(services.database, meta.session_id))
        listing_notes = tasks.create_task(notes_of_session(services.database, meta.session_id))
    extent, dialogue = measuring.result(), loading.result()
    if extent == "archive_unavailable":
        warnings.append(extent)
        extent = None
    elif extent is not None and extent.holes:
        warnings.append("events_missing")
    if dialogue is None:
        warnings.append("not_stored_yet")
    return WholeSession(
        session=summarizing.result(),
        extent=None if extent is None else _extent(extent),
        turns=() if dialogue is None else dialogue.turns,
        answers=[] if dialogue is None else [_answer(prediction) for prediction in dialogue.predictions],
        feedback=listing_feedback.result(),
        notes=listing_notes.result(),
        warnings=warnings,
    )


async def _extent_of(services: Services, meta: SessionMeta) -> Extent | Literal["archive_unavailable"] | None:
    try:
        return await services.recording.extent(meta.session_id)
    except ArchiveUnavailable:
        return "archive_unavailable"


def _answer(prediction: StoredPrediction) -> AnswerView:
    trace = prediction.trace
    return AnswerView(
        response_id=prediction.response_id,
        turn_id=prediction.turn_id,
        model=prediction.model,
        model_version=prediction.model_version,
        prompt_version=trace.prompt_version if trace else None,
        persona=trace.persona if trace else None,
        status=prediction.status,
        status_reason=prediction.status_reason,
        error=prediction.error,
        text=prediction.text,
        output=Raw(prediction.output.encode()),
        request=Raw(prediction.request.encode()),
        input_tokens=prediction.input_tokens,
        output_tokens=prediction.output_tokens,
        cached_tokens=prediction.cached_tokens,
        created_ms=prediction.created_ms,
        first_token_ms=prediction.first_token_ms,
        done_ms=prediction.done_ms,
        sent_chars=prediction.sent_chars,
        heard_text=prediction.heard_text,
        heard_chars=prediction.heard_chars,
        prompt=trace.prompt if trace else None,
        prompt_chars=trace.prompt_chars if trace else None,
        prompt_format=trace.prompt_format if trace else None,
        sampling=Raw(trace.sampling.encode()) if trace else None,
        waterfall=waterfall(prediction),
    )


def _extent(extent: Extent) -> ExtentView:
    return ExtentView(
        first_sequence=extent.first_sequence,
        last_sequence=extent.last_sequence,
        first_ms=extent.first_ms,
        last_ms=extent.last_ms,
        num_events=extent.num_events,
        is_live=extent.is_live,
        holes=extent.holes,
    )
