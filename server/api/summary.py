"""A session in short, from the tables as they are now; of one that the writer has not stored yet what the store knows."""

from persistence.facts import summary_of as stored_summary
from persistence.masking import Mask
from persistence.summaries import Summary
from server.services import Services
from sessions.store import SessionMeta


async def summary_of(services: Services, meta: SessionMeta, mask: Mask) -> Summary:
    """The summary, its text as `mask` leaves it; its counts are zero where nothing is stored yet."""
    stored = await stored_summary(services.database, meta.session_id, mask)
    return stored if stored is not None else _bare(meta)


def _bare(meta: SessionMeta) -> Summary:
    return Summary(
        session_id=meta.session_id,
        user_id=meta.user_id,
        client_id=meta.client_id,
        model=meta.model,
        status="active",
        created_ms=meta.created_ms,
        updated_ms=meta.created_ms,
        ended_ms=None,
        num_turns=0,
        num_answers=0,
        num_errors=0,
        num_interruptions=0,
        num_up=0,
        num_down=0,
        max_first_token_ms=None,
        first_text=None,
    )
