"""Made-up recordings: what a session's journal holds, with times, and the facts that the API tells of it. Deterministic."""

from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

BEGAN_MS = 1_795_430_000_000  # 2026-11-23
TOKEN_MS = 55


@dataclass
class Recording:
    """Events as they come to be, one after the other."""

    session_id: str
    model: str = "demo"
    events: list[tuple[int, Json]] = field(default_factory=list)  # milliseconds since the beginning
    turns: list[Json] = field(default_factory=list)
    answers: list[Json] = field(default_factory=list)
    feedback: list[Json] = field(default_factory=list)
    now_ms: int = 0

    def __post_init__(self) -> None:
        session = {"id": self.session_id, "object": "realtime.session", "type": "realtime", "model": self.model}
        self.emit("session.created", session=session)

    def emit(self, kind: str, **fields: object) -> None:
        """An event, now."""
        number = len(self.events) + 1
        event = {"type": kind, "event_id": f"event_{number}", "sequence_number": number, **fields}
        self.events.append((self.now_ms, event))

    def wait(self, ms: int) -> None:
        """Nothing, for so long."""
        self.now_ms += ms

    def ask(self, text: str) -> str:
        """A user's message; its turn's id."""
        number = len(self.turns) + 1
        item_id = f"item_q{number}"
        self._item("added", item_id, "user", text, "completed")
        self._item("done", item_id, "user", text, "completed")
        turn = {"turn_id": f"turn_{number}", "number": number, "item_id": item_id, "text": text}
        self.turns.append({**turn, "created_ms": BEGAN_MS + self.now_ms})
        return f"turn_{number}"

    def answer(
        self,
        turn_id: str,
        text: str,
        *,
        status: str = "completed",
        waits: tuple[int, int, int] = (20, 140, 90),
        **facts: object,
    ) -> str:
        """An answer, word by word, after it waited in the queue, for the prefill and for its first token; its item's id."""
        number = len(self.answers) + 1
        response_id, item_id = f"resp_{number}", f"item_a{number}"
        created_ms = self.now_ms
        where = {"response_id": response_id, "item_id": item_id, "output_index": 0, "content_index": 0}
        self.emit(
            "response.created",
            response={"id": response_id, "status": "in_progress", "conversation_id": "conv_1", "metadata": {}},
        )
        self.now_ms += sum(waits)
        self._item("added", item_id, "assistant", "", "in_progress")
        words = text.split(" ")
        for n, word in enumerate(words):
            self.emit("response.output_text.delta", delta=word if n == 0 else f" {word}", **where)
            self.now_ms += TOKEN_MS
        self.emit("response.output_text.done", text=text, **where)
        self.now_ms += 4
        self._item("done", item_id, "assistant", text, "completed" if status == "completed" else "incomplete")
        details = {"completed": None, "cancelled": {"reason": "client_cancelled"}}.get(
            status, {"error": {"code": "engine_failed", "message": "The engine stopped."}}
        )
        usage = {"input_tokens": 96, "output_tokens": len(words)}
        response = {"id": response_id, "status": status, "status_details": details, "usage": usage}
        self.emit("response.done", response=response)
        self.answers.append(self._facts(number, turn_id, text, status, created_ms, waits, len(words)) | facts)
        return item_id

    def rate(self, item_id: str, rating: str, comment: str | None = None) -> None:
        """The user's rating, as it was acknowledged."""
        rated_ms = BEGAN_MS + self.now_ms
        facts = {"item_id": item_id, "rating": rating, "reason": None, "comment": comment, "start": None, "end": None}
        feedback = {"id": f"fb_{item_id}", "object": "avatar.feedback", **facts, "rated_at_ms": rated_ms}
        self.emit("avatar.feedback.created", feedback=feedback)
        self.feedback.append(
            rating_of(self.session_id, item_id, rating, user_id="anna", role="user", rated_ms=rated_ms, comment=comment)
        )

    @property
    def extent(self) -> Json:
        """As the API tells it."""
        last_ms = self.events[-1][0]
        return {
            "first_sequence": 1,
            "last_sequence": len(self.events),
            "first_ms": BEGAN_MS,
            "last_ms": BEGAN_MS + last_ms,
            "num_events": len(self.events),
            "is_live": False,
            "holes": [],
        }

    def _item(self, step: str, item_id: str, role: str, text: str, status: str) -> None:
        kind = "input_text" if role == "user" else "output_text"
        content = [{"type": kind, "text": text}] if text else []
        item = {"id": item_id, "type": "message", "role": role, "status": status, "content": content}
        self.emit(f"conversation.item.{step}", previous_item_id=None, item=item)

    def _facts(
        self,
        number: int,
        turn_id: str,
        text: str,
        status: str,
        created_ms: int,
        waits: tuple[int, int, int],
        num_words: int,
    ) -> Json:
        durations = zip(
            ("queue", "prefill", "first_token", "decode", "delivery", "heard"),
            (*waits, num_words * TOKEN_MS, 4, 310),
            strict=True,
        )
        waterfall, start_ms = [], 0
        for part, duration_ms in durations:
            waterfall.append({"part": part, "start_ms": start_ms, "duration_ms": duration_ms})
            start_ms += duration_ms
        return {
            "response_id": f"resp_{number}",
            "turn_id": turn_id,
            "model": self.model,
            "model_version": "2026-11-02+3f9ac1",
            "prompt_version": "greeter@14",
            "persona": "kiosk",
            "status": status,
            "status_reason": "client_cancelled" if status == "cancelled" else None,
            "error": "The engine stopped." if status == "failed" else None,
            "text": text,
            "output": [
                {
                    "id": f"item_a{number}",
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": text}],
                }
            ],
            "request": {},
            "input_tokens": 96,
            "output_tokens": num_words,
            "cached_tokens": 64,
            "created_ms": BEGAN_MS + created_ms,
            "first_token_ms": BEGAN_MS + created_ms + sum(waits),
            "done_ms": BEGAN_MS + self.now_ms,
            "sent_chars": len(text),
            "heard_text": text,
            "heard_chars": len(text),
            "prompt": f"<|system|>\nYou are the guide of a museum. Be brief.\n<|user|>\n{self.turns[-1]['text']}\n<|assistant|>\n",
            "prompt_format": "text",
            "sampling": {"temperature": 0.7, "top_p": 0.95, "max_tokens": 512},
            "waterfall": waterfall,
        }


def rating_of(
    session_id: str, item_id: str, rating: str | None, *, user_id: str, role: str, rated_ms: int, **more: object
) -> Json:
    """A rating as the API tells it."""
    feedback: Json = {
        "feedback_id": f"fb_{user_id}_{item_id}",
        "session_id": session_id,
        "item_id": item_id,
        "user_id": user_id,
    }
    feedback |= {"role": role, "rating": rating, "reason": None, "comment": None, "start": None, "end": None}
    return feedback | {"rated_ms": rated_ms, "received_ms": rated_ms, "model": "demo"} | more
