"""From a rating on the wire to the webhook's receiver: with the writer in the server, apart from it, and killed on the way. P3"""

import asyncio
import base64
from pathlib import Path

from sqlalchemy import select, update
from standardwebhooks.webhooks import Webhook

from persistence.tables import webhook_deliveries
from persistence.times import utc_time
from sessions.feedback import feedback_id
from tests.end_to_end.client import Client, open_client
from tests.end_to_end.conftest import Backends
from tests.end_to_end.processes import FluemanProcess, running, token_of
from tests.end_to_end.stored import Records, until
from tests.persistence.receiver import FakeReceiver, Received, answering, fake_receiver
from tests.sessions.builders import Json

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


def settings_of(backends: Backends, receiver: FakeReceiver) -> dict[str, str]:
    return {
        **backends.settings,
        "FLUEMAN_FEEDBACK_WEBHOOK_URL": receiver.url,
        "FLUEMAN_FEEDBACK_WEBHOOK_SECRET": SECRET,
    }


async def rate(client: Client, item_id: str, **fields: object) -> None:
    await client.send("avatar.feedback.create", item_id=item_id, feedback=fields)
    await client.until("avatar.feedback.created")


def verified(received: Received) -> Json:
    """What the specification's own library makes of it."""
    event: Json = Webhook(SECRET).verify(received.body, dict(received.headers))
    return event


async def test_a_rating_on_the_wire_reaches_the_receiver_signed_and_whole(backends: Backends, tmp_path: Path) -> None:
    """With the writer in the server; and the server says so while the receiver fails, and goes on."""
    async with fake_receiver() as receiver:
        receiver.behave = [answering("500 No")]
        settings = settings_of(backends, receiver) | {"FLUEMAN_MASK_PERSONAL_DATA": "true"}
        node = FluemanProcess(tmp_path, settings, "serve")
        with running(node):
            async with open_client(node.port, token_of("anna")) as client:
                item_id = (await client.ask("[echo Hello there]"))["output"][0]["id"]
                await rate(client, item_id, rating="down", reason="other", comment="zu laut 🙂 a@b.example")
                await receiver.until(1)

                async def is_degraded() -> bool:
                    status, checks = await asyncio.to_thread(node.readiness)
                    return status == 200 and checks["webhook"].startswith("the receiver answered 500")

                await until(is_degraded)
                receiver.behave = [answering("204 Fine")]

                async def is_well() -> bool:
                    return (await asyncio.to_thread(node.readiness))[1]["webhook"] == "ok"

                await until(is_well)
                num_received = len(receiver.received)
                rating_id = feedback_id(client.session_id, item_id, "anna")
                await client.send("avatar.feedback.delete", feedback_id=rating_id)
                await client.until("avatar.feedback.deleted")
                await receiver.until(num_received + 1)
        *tries, withdrawal = receiver.received

    assert node.errors() == []
    assert len({received.id for received in tries}) == 1
    created, deleted = verified(tries[-1]), verified(withdrawal)
    feedback = created["data"]["feedback"]
    assert created["type"] == "feedback.created"
    assert created["id"] == tries[-1].id
    assert (feedback["feedback_id"], feedback["session_id"]) == (rating_id, client.session_id)
    assert (feedback["item_id"], feedback["user_id"], feedback["role"]) == (item_id, "anna", "user")
    assert (feedback["rating"], feedback["reason"], feedback["comment"]) == ("down", "other", "zu laut 🙂 •••••••••••")
    assert (feedback["model"], feedback["persona"]) == ("demo", "kiosk")
    assert deleted["type"] == "feedback.deleted"
    assert deleted["data"]["feedback"]["feedback_id"] == rating_id
    assert deleted["data"]["version"] > created["data"]["version"]


async def test_of_writers_that_are_killed_the_last_leaves_the_receiver_with_the_last_choices(
    backends: Backends, records: Records, tmp_path: Path
) -> None:
    """P3: with writers apart, one of which is killed each time that a delivery arrives, before it is answered."""
    async with fake_receiver() as receiver:
        settings = {**settings_of(backends, receiver), "FLUEMAN_WRITER": "none"}
        node = FluemanProcess(tmp_path / "node", settings, "serve")
        writer = FluemanProcess(tmp_path / "writer", settings, "write")
        with running(node, writer):
            async with open_client(node.port, token_of("anna")) as client:
                item_id = (await client.ask("[echo Hello there]"))["output"][0]["id"]

                async def kill(received: Received, connection: asyncio.StreamWriter) -> None:
                    writer.kill()
                    connection.close()

                receiver.behave = [kill, answering("204 Fine")]
                await rate(client, item_id, rating="up")
                await receiver.until(1)
                await rate(client, item_id, rating="down")
                await asyncio.to_thread(writer.start)
                await let_a_minute_pass(records)
                await receiver.until(2)

    events = [verified(received) for received in receiver.received]
    latest = max(events, key=lambda event: str(event["data"]["version"]))
    assert latest["data"]["feedback"]["rating"] == "down"
    assert events[0]["data"]["feedback"]["rating"] == "up"


async def let_a_minute_pass(records: Records) -> None:
    """Once the last choice is stored: as if the lease of the killed writer were over."""

    async def is_stored() -> bool:
        async with records.database.snapshot() as connection:
            return '"down"' in str(await connection.scalar(select(webhook_deliveries.c.record)))

    await until(is_stored)
    async with records.database.transaction() as connection:
        await connection.execute(update(webhook_deliveries).values(due_at=utc_time(0)))
