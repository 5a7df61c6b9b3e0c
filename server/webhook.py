"""What the settings make of the webhook: who notes that ratings change, and who tells its receiver."""

import ipaddress
from collections.abc import Callable
from functools import partial

from persistence.database import Database
from persistence.masking import mask, unmasked
from persistence.webhook import Deliverer
from persistence.webhook_changes import Announce, announce_nothing, announce_ratings
from persistence.webhook_event import secret_key
from persistence.webhook_receiver import open_receiver
from server.settings import Settings


def announcing(settings: Settings, *, now_ms: Callable[[], int]) -> Announce:
    """For the writer: it announces nothing where nobody is to be told."""
    return announce_nothing if settings.feedback_webhook_url is None else partial(announce_ratings, now_ms=now_ms)


def make_deliverer(settings: Settings, database: Database, *, now_ms: Callable[[], int]) -> Deliverer | None:
    """For beside the writer; None where nobody is to be told."""
    url, secret = settings.feedback_webhook_url, settings.feedback_webhook_secret
    if url is None or secret is None:
        return None
    networks = [ipaddress.ip_network(network) for network in settings.feedback_webhook_networks]
    return Deliverer(
        database,
        open_receiver(url, networks=networks),
        key=secret_key(secret.get_secret_value()),
        mask=mask if settings.mask_personal_data else unmasked,
        now_ms=now_ms,
    )
