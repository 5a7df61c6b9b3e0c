"""Another node takes a session over: it finds the dialogue as the client saw it, and the first owner may write no more."""

from pathlib import Path

from msgspec.json import decode

from server.identifiers import new_id
from sessions.dialogue import Dialogue
from sessions.redis_store import RedisStore
from sessions.state import decode_state
from sessions.store import LoadedSession
from tests.end_to_end.client import WEATHER, Client, open_client
from tests.end_to_end.conftest import Backends
from tests.end_to_end.processes import FluemanProcess, running, token_of
from tests.end_to_end.stored import STORE_TIMEOUT_S, journaled
from tests.sessions.builders import fold, user_item, wire_items


async def talk(client: Client) -> None:
    """Something of each that makes up a dialogue: instructions, tools, answers whole and cut, a call, an item put between, one deleted."""
    await client.send("session.update", session={"type": "realtime", "instructions": "Be kind.", "tools": [WEATHER]})
    await client.ask("first")
    await client.ask_and_cut("[tokens 4000] [pace 100] second", num_deltas=4)
    call = (await client.ask('[call get_weather {"city":"Ulm"}]'))["output"][0]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "fog"}
    await client.send("conversation.item.create", item=output)
    await client.answer()
    await client.send("conversation.item.create", item=user_item("before all"), previous_item_id="root")
    await client.send("conversation.item.delete", item_id=client.acknowledged[0])
    await client.until("conversation.item.deleted")


def rebuilt(loaded: LoadedSession) -> Dialogue:
    """The dialogue as the next owner has it."""
    return Dialogue(
        loaded.meta,
        decode_state(loaded.config),
        new_id=new_id,
        expires_at=0,
        items=loaded.items,
        next_sequence=loaded.next_sequence,
    )


async def test_another_node_loads_the_dialogue_and_the_old_owner_is_fenced(backends: Backends, tmp_path: Path) -> None:
    """P4."""
    node = FluemanProcess(tmp_path / "node", {**backends.settings, "FLUEMAN_WRITER": "none"}, "serve")
    with running(node):
        async with (
            open_client(node.port, token_of("mia")) as client,
            open_client(node.port, token_of("tom")) as bystander,
            RedisStore(backends.redis.url, timeout_s=STORE_TIMEOUT_S) as store,
        ):
            await talk(client)

            await store.renew("another node", 60.0)
            loaded = await store.claim(client.session_id, "another node", user_id="mia")
            dialogue = rebuilt(loaded)

            assert wire_items(dialogue) == fold(client.events)
            assert dialogue.config.instructions == "Be kind."
            assert [tool.name for tool in dialogue.config.tools] == ["get_weather"]
            assert decode_state(loaded.config).num_turns == 4
            assert (loaded.meta.user_id, loaded.meta.client_id) == ("mia", "kiosk")
            assert dialogue.next_sequence == len(client.frames) + 1
            assert await journaled(store, client.session_id) == client.frames

            num_frames = len(client.frames)
            num_records = (await store.lag()).pending
            await client.say("Is anybody there?")

            assert await client.drain() == 4001
            assert len(client.frames) == num_frames, "what could not be committed was delivered"
            assert await journaled(store, client.session_id) == client.frames
            records = [decode(delivery.record) for delivery in await store.take("test", 1000, 0)]
            of_client = [record for record in records[num_records:] if record.get("session_id") == client.session_id]
            assert [record["record"] for record in of_client] in ([], ["request"]), "a fenced node recorded"
            assert (await bystander.ask("[echo I am]"))["status"] == "completed"
