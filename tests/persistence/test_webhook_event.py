"""What the webhook sends is what the specification's own library takes, and nothing that somebody else made or changed."""

import base64
import time

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from persistence.masking import unmasked
from persistence.webhook_event import event_body, secret_key, signed_headers
from tests.persistence.builders import CREATED_MS, make_feedback

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
BODY = event_body(
    "evt_1", make_feedback("sess_1", comment='"ü" \u2028🙂'), None, announced_ms=CREATED_MS, mask=unmasked
)


def headers_of(body: bytes, *, secret: str = SECRET, now_s: float | None = None) -> dict[str, str]:
    return signed_headers("evt_1", body, key=secret_key(secret), now_s=int(now_s or time.time()))


def test_the_libraries_of_standard_webhooks_take_it() -> None:
    event = Webhook(SECRET).verify(BODY, headers_of(BODY))

    assert event["id"] == "evt_1"
    assert event["data"]["feedback"]["comment"] == '"ü" \u2028🙂'


@pytest.mark.parametrize("change", ["secret", "body", "id", "time", "replay"])
def test_what_another_signed_or_changed_or_sends_again_much_later_is_refused(change: str) -> None:
    headers, body, verified_by = headers_of(BODY), BODY, SECRET
    match change:
        case "secret":
            verified_by = "whsec_" + base64.b64encode(bytes(32)).decode()
        case "body":
            body = body.replace(b'"up"', b'"down"')
        case "id":
            headers["webhook-id"] = "evt_2"
        case "time":
            headers["webhook-timestamp"] = str(int(headers["webhook-timestamp"]) + 1)
        case "replay":
            headers = headers_of(BODY, now_s=time.time() - 301)

    with pytest.raises(WebhookVerificationError):
        Webhook(verified_by).verify(body, headers)


@pytest.mark.parametrize(
    "secret",
    ["", "whsec_", "whsec_canary!", "whsec_" + "A" * 28, "whsec_" + "A" * 88, "A" * 44, "whsec_" + "A" * 43],
    ids=["nothing", "no key", "no base64", "short", "long", "no prefix", "cut off"],
)
def test_a_secret_that_is_none_is_refused_without_being_quoted(secret: str) -> None:
    with pytest.raises(ValueError, match="must be whsec_ and the base64 of 24 to 64 bytes") as caught:
        secret_key(secret)

    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None
