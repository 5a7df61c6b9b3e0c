"""What the store keeps of a dialogue besides its items: its configuration, its open answers, and what its listener got.

A dialogue is stored with the events that changed it, atomically. So the stored state and the journal's later deltas are the dialogue.
"""

from typing import Literal

import msgspec
from msgspec import Struct

from sessions.config import SessionConfig
from sessions.generation import FunctionTool, ToolChoice, Truncation, Usage
from sessions.items import Item
from sessions.listener import ListenerState

# The id of an item in the dialogue, or the item itself when the dialogue holds none or another under its id.
ItemReference = str | Item


class AnswerState(Struct, frozen=True, omit_defaults=True):
    """A response that has begun and not ended, with what it has said up to the event before `next_sequence`.

    It is stored when it begins and whenever an item of it begins or ends; what comes after is in the journal, as deltas of `unfinished`.
    `first_sequence` is the number of its response.created. `instructions` and `tools` are None where they are the session's.
    """

    response_id: str
    first_sequence: int
    next_sequence: int
    created_ms: int
    max_output_tokens: int | Literal["inf"]
    tool_choice: ToolChoice
    truncation: Truncation
    items: tuple[ItemReference, ...]
    in_conversation: bool = True
    turn_id: str | None = None
    metadata: dict[str, str] | None = None
    instructions: str | None = None
    tools: tuple[FunctionTool, ...] | None = None
    done: tuple[ItemReference, ...] = ()
    unfinished: Item | None = None
    first_token_ms: int | None = None
    num_tokens: int = 0
    usage: Usage | None = None
    sent_chars: int | None = None
    prompt_version: str | None = None


class DialogueState(Struct, frozen=True, omit_defaults=True):
    """All of it. `has_ended`: the session is over, until a client resumes it. `rates`: the client knows of ratings, and is told of them."""

    config: SessionConfig
    turn_id: str | None = None
    num_turns: int = 0
    answers: tuple[AnswerState, ...] = ()
    listener: ListenerState = ListenerState()
    has_ended: bool = False
    rates: bool = False

    @property
    def first_open_sequence(self) -> int | None:
        """The number of the earliest open response's response.created: a takeover needs the journal from there on. None: no need."""
        return min((answer.first_sequence for answer in self.answers), default=None)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(DialogueState)


def encode_state(state: DialogueState) -> bytes:
    """The state as JSON, for the store."""
    return _encoder.encode(state)


def decode_state(data: bytes) -> DialogueState:
    """What `encode_state` wrote."""
    return _decoder.decode(data)
