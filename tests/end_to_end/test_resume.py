"""Real nodes on real stores: clients that lose their connection, or their node, come back and miss nothing. P2, P3, P4."""

import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.end_to_end.client import DELTA, Client, open_client
from tests.end_to_end.conftest import Backends
from tests.end_to_end.processes import FluemanProcess, running, token_of
from tests.end_to_end.stored import Records
from tests.sessions.builders import user_item

QUESTION = "[pace 40] [tokens 40] go on"
NUM_TOKENS = 40
ENDLESS = "[pace 40] [tokens 4000] go on"
Nodes = tuple[FluemanProcess, FluemanProcess]


@pytest.fixture
def nodes(backends: Backends, tmp_path: Path) -> Iterator[tuple[FluemanProcess, FluemanProcess]]:
    """Two, the second of which also stores what there is to store."""
    settings = {**backends.settings, "FLUEMAN_LEASE_S": "2", "FLUEMAN_RESUME_GRACE_S": "4"}
    first = FluemanProcess(tmp_path / "first", {**settings, "FLUEMAN_WRITER": "none"}, "serve")
    second = FluemanProcess(tmp_path / "second", settings, "serve")
    with running(first, second):
        yield first, second


async def begin(client: Client, text: str = QUESTION) -> None:
    """Ask for sequence numbers, then for an answer."""
    await client.send("session.update", session={"type": "realtime", "resumption": {"enabled": True}})
    client.events[0]["sequence_number"] = 1  # it came before anybody asked
    await client.until("session.updated")
    await client.send("conversation.item.create", item=user_item(text))
    await client.send("response.create")


@asynccontextmanager
async def resume(port: int, client: Client) -> AsyncIterator[Client]:
    """The client's next connection, which missed nothing that is gone."""
    last = client.numbers[-1]
    async with open_client(port, token_of("mia"), resuming=(client.conversation_id, last)) as again:
        assert again.events[0]["session"]["resumption"] == {"enabled": True, "resumed": True, "gap": False}
        assert again.numbers == [last]
        yield again


def assert_whole(*clients: Client) -> None:
    """Together they saw every event once, in order."""
    first, *later = clients
    events = first.events + [event for client in later for event in client.events[1:]]
    assert [event["sequence_number"] for event in events] == list(range(1, len(events) + 1))
    assert len({event["event_id"] for event in events}) == len(events)


def deltas(*clients: Client) -> list[str]:
    """What they were told, piece by piece."""
    return [event["delta"] for client in clients for event in client.events if event["type"] == DELTA]


async def test_a_client_that_lost_its_connection_goes_on_in_the_middle_of_the_answer(nodes: Nodes) -> None:
    """Cut three times."""
    node, _ = nodes
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(open_client(node.port, token_of("mia")))]
        await begin(clients[0])
        for _ in range(3):
            for _ in range(5):
                await clients[-1].until(DELTA)
            # What came and was not read is lost too: however late this test is, something is left to go on with.
            clients[-1].cut()
            clients.append(await stack.enter_async_context(resume(node.port, clients[-1])))
        response = (await clients[-1].until("response.done"))["response"]

    assert_whole(*clients)
    assert response["status"] == "completed"
    assert len(deltas(*clients)) == NUM_TOKENS
    assert "".join(deltas(*clients)) == response["output"][0]["content"][0]["text"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
async def test_an_answer_goes_on_at_another_node_when_its_own_is_gone(
    nodes: Nodes, records: Records, how: signal.Signals
) -> None:
    """Killed, stopped for longer than its lease, or told to stop; and in the end everything is stored once."""
    doomed, heir = nodes
    async with open_client(doomed.port, token_of("mia")) as first, open_client(heir.port, token_of("tom")) as plain:
        await begin(first)
        await begin(plain)
        for _ in range(10):
            await first.until(DELTA)

        doomed.signal(how)
        async with resume(heir.port, first) as second:
            response = (await second.until("response.done"))["response"]
            await plain.until("response.done")
            if how == signal.SIGSTOP:
                doomed.signal(signal.SIGCONT)
                assert await first.drain() == 4001
                first.events = first.events[: second.numbers[0]]
            turn = await second.ask("[echo still there]")
            await second.close()

    assert_whole(first, second)
    assert deltas(first, second)[:NUM_TOKENS] == deltas(plain)
    assert response["id"] == next(e["response"]["id"] for e in first.events if e["type"] == "response.created")
    assert [response["status"], turn["status"]] == ["completed", "completed"]
    assert response["usage"] == plain.answers[0]["usage"]
    stored = await records.until_over(first.session_id)
    assert [(row.response_id, row.status) for row in stored] == [
        (response["id"], "completed"),
        (turn["id"], "completed"),
    ]


async def test_with_no_client_left_the_answer_of_a_killed_node_is_finished_and_stored(
    nodes: Nodes, records: Records
) -> None:
    """P6: by the node that finds the lease lapsed; then the grace ends the session."""
    doomed, _ = nodes
    async with open_client(doomed.port, token_of("mia")) as client, open_client(doomed.port, token_of("tom")) as plain:
        await begin(client)
        await plain.say(ENDLESS)
        await plain.send("response.create")
        for listener in (client, plain):
            await listener.until(DELTA)
        doomed.kill()

    went_on = await records.until_over(client.session_id)
    cut_off = await records.until_over(plain.session_id)

    assert [row.status for row in went_on] == ["completed"]
    assert [row.status for row in cut_off] == ["failed"], "its client cannot come back to it"


async def test_another_tab_takes_over_wherever_it_lands(nodes: Nodes) -> None:
    """The first is closed with a code that no client retries."""
    first_node, second_node = nodes
    async with open_client(first_node.port, token_of("mia")) as tab:
        await begin(tab, "[echo hi]")
        await tab.until("response.done")
        async with resume(second_node.port, tab) as other:
            code = await tab.drain()
            await other.ask("[echo mine now]")

    assert code == 4001


async def test_a_conversation_of_another_is_as_unknown_as_one_that_never_was(nodes: Nodes) -> None:
    node, other = nodes
    async with open_client(node.port, token_of("mia")) as client:
        await begin(client, "[echo hi]")
        await client.until("response.done")
        answers = []
        for port in (node.port, other.port):
            for conversation_id in (client.conversation_id, "conv_01JABCDEFGHJKMNPQRSTVWXYZ0", "nonsense"):
                with pytest.raises(InvalidStatus) as refused:
                    async with open_client(port, token_of("eve"), resuming=(conversation_id, 0)):
                        pass
                error = json.loads(refused.value.response.body or b"")["error"]
                answers.append((refused.value.response.status_code, {**error, "id": "its own"}))

        assert answers == [(404, answers[0][1])] * 6
        assert (await client.ask("[echo undisturbed]"))["status"] == "completed"


async def test_a_number_that_is_none_is_named(nodes: Nodes) -> None:
    headers = {"authorization": f"Bearer {token_of('mia')}"}
    for number in ("-1", "1e3", "٣", "x", "9" * 40):
        url = f"ws://127.0.0.1:{nodes[0].port}/v1/realtime?conversation_id=conv_x&starting_after={quote(number)}"
        async with connect(url, additional_headers=headers, proxy=None) as socket:
            error = json.loads(await socket.recv())["error"]
            with pytest.raises(ConnectionClosed):
                await socket.recv()

        assert (error["code"], error["param"], socket.close_code) == ("invalid_value", "starting_after", 4000), number
