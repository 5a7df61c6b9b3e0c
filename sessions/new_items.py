"""Items as clients write them, checked and turned into items of the dialogue."""

from collections.abc import Callable

from sessions.client_events import NewContent, NewFunctionCall, NewFunctionCallOutput, NewItem, NewMessage
from sessions.items import (
    ContentPart,
    FunctionCallItem,
    FunctionCallOutputItem,
    InputText,
    Item,
    MessageItem,
    OutputText,
    Role,
)
from sessions.wire_errors import BadEvent

MAX_ITEM_ID_LENGTH = 64

NewId = Callable[[str], str]


def make_item(new: NewItem, *, new_id: NewId, param: str, max_chars: int) -> Item:
    """The item a client described, under its own id or a new one; `BadEvent` names the wrong field below `param`."""
    item = _make_item(new, new_id=new_id, param=param)
    if (num_chars := _num_chars(item)) > max_chars:
        message = f"Expected at most {max_chars} characters of text in an item, got {num_chars}."
        raise BadEvent("string_above_max_length", message, param)
    return item


def _num_chars(item: Item) -> int:
    match item:
        case MessageItem():
            return len(item.text)
        case FunctionCallItem():
            return len(item.arguments) + len(item.name)
        case FunctionCallOutputItem():
            return len(item.output)


def _make_item(new: NewItem, *, new_id: NewId, param: str) -> Item:
    item_id = new_id("item_") if new.id is None else _checked_id(new.id, f"{param}.id")
    match new:
        case NewMessage():
            content = tuple(
                _content(part, new.role, f"{param}.content[{index}]") for index, part in enumerate(new.content)
            )
            return MessageItem(item_id, new.role, content, "incomplete" if new.status == "incomplete" else "completed")
        case NewFunctionCall():
            call_id = new_id("call_") if new.call_id is None else _checked_id(new.call_id, f"{param}.call_id")
            return FunctionCallItem(item_id, call_id, new.name, new.arguments)
        case NewFunctionCallOutput():
            return FunctionCallOutputItem(item_id, _checked_id(new.call_id, f"{param}.call_id"), new.output)


def _content(part: NewContent, role: Role, param: str) -> ContentPart:
    served = ("output_text", "text") if role == "assistant" else ("input_text", "text")
    if part.type not in served:
        known = f"Invalid value: {part.type[:64]!r}. This server takes {served[0]!r} from the role {role!r}."
        raise BadEvent("invalid_value", known, f"{param}.type")
    if part.text is None:
        raise BadEvent("missing_required_parameter", f"Missing required parameter: '{param}.text'.", f"{param}.text")
    return OutputText(part.text) if role == "assistant" else InputText(part.text)


def _checked_id(value: str, param: str) -> str:
    # MySQL's collations take a name with a space behind it for the same name: two items would share a rating's place.
    if not value or not value.isprintable() or value != value.strip():
        raise BadEvent("invalid_value", "An id must be non-empty and printable, without spaces around it.", param)
    if len(value) > MAX_ITEM_ID_LENGTH:
        message = f"Expected an id of at most {MAX_ITEM_ID_LENGTH} characters, got {len(value)}."
        raise BadEvent("string_above_max_length", message, param)
    return value
