"""What the made-up server knows: a session with everything in it, many others, days of figures, an audit trail."""

import random

from tests.browser.stub_console import Stub
from tests.browser.stub_recording import BEGAN_MS, Recording, rating_of

FULL = "sess_01JD8FULL"
BIDI = "Is this \u202egnp.exe\u202c safe? <img src=x onerror=alert(1)> \u0007"
DAY_MS = 86_400_000
_ASKED = (
    "Where do I find the whale?",
    "Wie spät schließt das Museum heute?",
    "Can my dog come in with me? She is very small and has never bitten anyone, so far.",
    "ما هي أقدم قطعة هنا؟",
    "Tell me something about the ceiling",
    BIDI,
    "この展示は何時まで見られますか",
    "Is there a café?",
)


def full_recording(session_id: str = FULL) -> Recording:
    """A talk with an interruption, a failure, a thumb, and a long silence."""
    recording = Recording(session_id)
    recording.wait(1800)
    turn = recording.ask("Where do I find the whale?")
    recording.wait(12)
    recording.answer(
        turn,
        "The blue whale hangs in the great hall, right above you as you come in. She is twenty-five metres long, "
        "and children like to lie down under her and look up.",
    )
    recording.wait(1400)
    recording.rate("item_a1", "up", "Found her at once, thank you!")
    recording.wait(3800)
    turn = recording.ask("Can my dog come in with me? She is very small.")
    recording.wait(10)
    text = "Dogs are welcome in the garden, but inside the halls only those who"
    recording.answer(
        turn,
        text,
        status="cancelled",
        waits=(640, 380, 210),
        heard_text="Dogs are welcome in the garden",
        heard_chars=30,
        sent_chars=len(text) - 12,
    )
    recording.wait(900)
    turn = recording.ask("She is a guide dog.")
    recording.wait(10)
    recording.answer(turn, "Then of course she may come with you everywhere. Water is at the cloakroom.")
    recording.wait(45_000)
    turn = recording.ask(BIDI)
    recording.wait(9)
    recording.answer(turn, "I could not finish", status="failed")
    recording.wait(2000)
    return recording


def populate(stub: Stub) -> None:
    """Everything."""
    recording = full_recording()
    wrong = rating_of(
        FULL,
        "item_a2",
        "down",
        user_id="anna",
        role="user",
        rated_ms=BEGAN_MS + 15_900,
        reason="too-slow",
        comment="It went on and on <b>after</b> I spoke.",
    )
    reviewed = rating_of(
        FULL, "item_a3", "up", user_id="rita", role="support", rated_ms=BEGAN_MS + 86_400_000, comment=None
    )
    note = {
        "note_id": "note_0",
        "author_id": "rita",
        "text": "Told the house: dogs are asked about every day.",
        "position_ms": 14_000,
        "created_ms": BEGAN_MS + 90_000_000,
    }
    stub.add(recording, feedback=[*recording.feedback, wrong, reviewed], notes=[note])
    chance = random.Random(7)
    for number in range(64):
        asked = _ASKED[number % len(_ASKED)]
        quick = Recording(f"sess_{number:04}")
        quick.answer(quick.ask(asked), "Yes.")
        created_ms = BEGAN_MS - number * 2_700_000 - 600_000
        stub.add(
            quick,
            created_ms=created_ms,
            user_id=chance.choice(("anna", "bo", "한나", "kiosk-visitor-2231")),
            client_id=chance.choice(("kiosk", "garden-guide")),
            status="active" if number == 1 else "ended",
            num_turns=1 + number % 9,
            num_errors=int(number % 11 == 3),
            num_interruptions=number % 3,
            max_first_token_ms=int(chance.lognormvariate(5.6, 0.7)),
            feedback=[rating_of("", "", chance.choice(("up", "down")), user_id="anna", role="user", rated_ms=0)]
            * (number % 4 // 2),
        )
    for day in range(30):
        for model, share in (("demo", 0.86), ("qwen3-8b", 0.93)):
            num_answers = int(chance.gauss(900, 160) * (0.6 if day % 7 > 4 else 1))
            rated = int(num_answers * 0.11)
            num_up = int(rated * chance.gauss(share, 0.03))
            p50 = chance.gauss(230 if model == "demo" else 310, 18) * (1.5 if day == 21 else 1)
            stub.days.append(
                {
                    "day": f"2026-{10 if day < 7 else 11}-{day + 25 if day < 7 else day - 6:02}",
                    "model": model,
                    "num_sessions": num_answers // 6,
                    "num_answers": num_answers,
                    "num_up": num_up,
                    "num_down": rated - num_up,
                    "num_errors": int(chance.expovariate(1 / (30 if day == 21 else 4))),
                    "num_interruptions": int(num_answers * chance.gauss(0.08, 0.01)),
                    "first_token_p50_ms": round(p50),
                    "first_token_p99_ms": round(p50 * chance.gauss(3.4, 0.3)),
                }
            )
    for number in range(30):
        stub.audits.append(
            {
                "number": 30 - number,
                "audit_id": f"audit_{number}",
                "actor_id": chance.choice(("sam", "rita")),
                "role": "support",
                "client_id": "kiosk",
                "action": chance.choice(("session.view", "session.replay", "session.export", "session.search")),
                "session_id": None if number % 4 == 0 else f"sess_{number:04}",
                "detail": {"text": "dog"} if number % 4 == 0 else {},
                "at_ms": BEGAN_MS - number * 400_000,
            }
        )
