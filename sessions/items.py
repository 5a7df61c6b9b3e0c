"""The entries of a dialogue, as the OpenAI Realtime protocol names them: messages, function calls and their outputs.

Source: openai-python 3.54.0, `openai.types.realtime.conversation_item`.
"""

from typing import Literal

from msgspec import Struct

Role = Literal["system", "user", "assistant"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class InputText(Struct, frozen=True, tag_field="type", tag="input_text"):
    """Text that the user or the system put in."""

    text: str


class OutputText(Struct, frozen=True, tag_field="type", tag="output_text"):
    """Text that the assistant answered."""

    text: str


ContentPart = InputText | OutputText


class MessageItem(Struct, frozen=True, tag_field="type", tag="message"):
    """A message of the system, the user or the assistant."""

    id: str
    role: Role
    content: tuple[ContentPart, ...]
    status: ItemStatus = "completed"
    object: Literal["realtime.item"] = "realtime.item"

    @property
    def text(self) -> str:
        """The whole text of the message, its parts joined."""
        parts = self.content
        # Nearly every message has one part, and each is read several times for every answer.
        return parts[0].text if len(parts) == 1 else "".join([part.text for part in parts])


class FunctionCallItem(Struct, frozen=True, tag_field="type", tag="function_call"):
    """A call of a tool that the assistant asks the client to make; `arguments` is a JSON document in text."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus = "completed"
    object: Literal["realtime.item"] = "realtime.item"


class FunctionCallOutputItem(Struct, frozen=True, tag_field="type", tag="function_call_output"):
    """What the client's tool answered to a call."""

    id: str
    call_id: str
    output: str
    status: ItemStatus = "completed"
    object: Literal["realtime.item"] = "realtime.item"


Item = MessageItem | FunctionCallItem | FunctionCallOutputItem


def num_chars(item: Item) -> int:
    """How long what an item says is."""
    match item:
        case MessageItem():
            return sum([len(part.text) for part in item.content])
        case FunctionCallItem():
            return len(item.arguments)
        case FunctionCallOutputItem():
            return len(item.output)
