"""What is shown to who is not granted personal data: the same answers, with every text in them masked. Decides nothing.

Ids that tie things together stay as they are, and so do all numbers and times.
"""

from collections.abc import Sequence

from msgspec import Raw
from msgspec.structs import replace

from persistence.audit import AuditRow
from persistence.feedback import StoredFeedback
from persistence.masked_json import mask_json, mask_json_text
from persistence.masking import mask, mask_prompt_text
from persistence.notes import StoredNote
from persistence.prompts import StoredPrompt
from persistence.summaries import Summary
from server.api.whole_session import AnswerView, WholeSession
from sessions.utf16 import clip, num_units


def mask_summary(summary: Summary) -> Summary:
    """The summary, masked."""
    return replace(
        summary,
        user_id=mask(summary.user_id),
        first_text=_mask(summary.first_text),
        snippet=_mask(summary.snippet),
    )


def mask_session(found: WholeSession) -> WholeSession:
    """All of a session, masked. Takes some milliseconds a MiB of prompts: keep it off the event loop."""
    return replace(
        found,
        session=mask_summary(found.session),
        turns=[replace(turn, text=mask(turn.text)) for turn in found.turns],
        answers=[_mask_answer(answer) for answer in found.answers],
        feedback=[mask_feedback(each) for each in found.feedback],
        notes=mask_notes(found.notes),
        masked=True,
    )


def _mask_answer(answer: AnswerView) -> AnswerView:
    text = mask(answer.text)
    heard = answer.heard_text
    if heard is not None:
        # What was heard may end within a number, and is masked as far as the whole is.
        heard = clip(text, num_units(heard)) if answer.text.startswith(heard) else mask(heard)
    prompt = answer.prompt
    if prompt is not None:
        prompt = _mask_prompt(prompt, answer.prompt_format)
    return replace(
        answer,
        text=text,
        heard_text=heard,
        error=_mask(answer.error),
        output=_mask_raw(answer.output),
        request=_mask_raw(answer.request),
        sampling=None if answer.sampling is None else _mask_raw(answer.sampling),
        prompt=prompt,
    )


def mask_feedback(feedback: StoredFeedback) -> StoredFeedback:
    """The opinion, masked; who of the staff has it stays known."""
    user_id = mask(feedback.user_id) if feedback.role == "user" else feedback.user_id
    return replace(feedback, user_id=user_id, comment=_mask(feedback.comment))


def mask_others_feedback(rows: Sequence[StoredFeedback], user_id: str) -> tuple[StoredFeedback, ...]:
    """The opinions, masked but for those of that user. Keep it off the event loop."""
    return tuple(row if row.user_id == user_id else mask_feedback(row) for row in rows)


def mask_notes(notes: Sequence[StoredNote]) -> tuple[StoredNote, ...]:
    """The notes, masked. Keep it off the event loop."""
    return tuple(replace(note, text=mask(note.text)) for note in notes)


def mask_prompt(found: StoredPrompt) -> StoredPrompt:
    """The prompt, masked. Takes some milliseconds a MiB."""
    return replace(found, prompt=_mask_prompt(found.prompt, found.prompt_format))


def mask_audit(row: AuditRow) -> AuditRow:
    """The entry with what was asked for masked; its hash is that of the entry as it is."""
    return replace(row, detail=mask_json_text(row.detail))


def _mask_prompt(prompt: str, prompt_format: str | None) -> str:
    return mask_json_text(prompt) if prompt_format == "messages" else mask_prompt_text(prompt)


def _mask(text: str | None) -> str | None:
    return None if text is None else mask(text)


def _mask_raw(document: Raw) -> Raw:
    return Raw(mask_json(bytes(document)))
