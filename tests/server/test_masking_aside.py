"""What is masked for a page is masked in a thread: the event loop speaks meanwhile. P7."""

import threading
from pathlib import Path

import pytest

import server.personal_data
from persistence.masking import mask
from sessions.records import Record
from tests.persistence.builders import make_feedback, make_note, make_prediction, make_session, make_turn
from tests.server.console import open_console, token

SESSION_ID = "sess_01K00000000000000000000001"
MAIL = "kim.minsu@example.com"


@pytest.mark.parametrize(("path", "shown"), [("/v1/feedback", "comment"), (f"/v1/sessions/{SESSION_ID}/notes", "text")])
async def test_a_page_is_masked_in_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, shown: str
) -> None:
    threads = set()

    def noted(text: str) -> str:
        threads.add(threading.current_thread())
        return mask(text)

    monkeypatch.setattr(server.personal_data, "mask", noted)
    turn = make_turn(SESSION_ID)
    records: list[Record] = [
        make_session(SESSION_ID),
        turn,
        make_prediction(SESSION_ID, turn.turn_id),
        make_feedback(SESSION_ID, comment=f"ask {MAIL}"),
        make_note(SESSION_ID, text=f"ask {MAIL}"),
    ]
    async with open_console(tmp_path, mask_personal_data=True) as console:
        await console.seed(SESSION_ID, records=records)
        await console.settled()

        answer = await console.get(path, token())

    assert [row[shown] for row in answer.json()["data"]] == ["ask " + "•" * len(MAIL)]
    assert threads
    assert threading.main_thread() not in threads
