"""What a response.create asks for: checked, completed from the session, and made an answer with a prompt for the engine."""

import hashlib
from typing import Literal

import msgspec
from msgspec import Raw, Struct

from sessions.answer import Answer
from sessions.client_events import ItemReference, NewInput, ResponseParams
from sessions.config import NULL, SessionConfig, check_max_output_tokens, check_tools
from sessions.generation import FunctionChoice, FunctionTool, Prompt, ToolChoice, Truncation
from sessions.items import FunctionCallItem, Item
from sessions.limits import DialogueLimits
from sessions.new_items import NewId, make_item
from sessions.timeline import Timeline
from sessions.wire_errors import BadEvent

_MAX_VERSION_CHARS = 64


class Plan(Struct, frozen=True):
    """A response that may begin: nothing of it can be refused any more. `given` replaces the dialogue in its prompt; ids refer to it."""

    in_conversation: bool
    instructions: str
    prompt_version: str
    tools: tuple[FunctionTool, ...]
    tool_choice: ToolChoice
    max_output_tokens: int | Literal["inf"]
    truncation: Truncation
    metadata: dict[str, str] | None
    given: tuple[Item | str, ...] | None


def plan_response(
    params: ResponseParams, config: SessionConfig, timeline: Timeline, *, limits: DialogueLimits, new_id: NewId
) -> Plan:
    """The response asked for, what is absent taken from the session; `BadEvent` names what is wrong."""
    check_max_output_tokens(params.max_output_tokens, "response.max_output_tokens")
    check_tools(params.tools, "response.tools")
    check_instructions(params.instructions or "", limits, "response.instructions")
    _check_metadata(params.metadata)
    tools = config.tools if params.tools is None else params.tools
    choice = config.tool_choice if params.tool_choice is None else params.tool_choice
    check_choice(choice, tools, "response.tool_choice")
    instructions = config.instructions if params.instructions is None else params.instructions
    return Plan(
        in_conversation=params.conversation != "none",
        instructions=instructions,
        prompt_version=_prompt_version(instructions, params, config),
        tools=() if choice == "none" else tools,
        tool_choice=choice,
        max_output_tokens=config.max_output_tokens if params.max_output_tokens is None else params.max_output_tokens,
        truncation=config.truncation,
        metadata=params.metadata,
        given=None if params.input is None else _given(params.input, timeline, limits=limits, new_id=new_id),
    )


def make_answer(
    plan: Plan,
    timeline: Timeline,
    *,
    response_id: str,
    session_id: str,
    conversation_id: str,
    turn_id: str | None,
    created_ms: int,
    first_sequence: int,
) -> Answer:
    """The answer that begins now; one outside the conversation has no part in it and in its turn."""
    prompt = Prompt(
        response_id=response_id,
        session_id=session_id,
        instructions=plan.instructions,
        items=_dialogue(timeline) if plan.given is None else _resolved(plan.given, timeline),
        tools=plan.tools,
        tool_choice=plan.tool_choice,
        max_output_tokens=None if plan.max_output_tokens == "inf" else plan.max_output_tokens,
        truncation=plan.truncation,
    )
    return Answer(
        prompt,
        conversation_id=conversation_id if plan.in_conversation else None,
        turn_id=turn_id if plan.in_conversation else None,
        max_output_tokens=plan.max_output_tokens,
        metadata=plan.metadata,
        created_ms=created_ms,
        first_sequence=first_sequence,
        prompt_version=plan.prompt_version,
    )


def check_choice(choice: ToolChoice, tools: tuple[FunctionTool, ...], param: str) -> None:
    """`BadEvent` when the tool that must be called is not among the tools."""
    if isinstance(choice, FunctionChoice) and all(tool.name != choice.name for tool in tools):
        raise BadEvent("invalid_value", f"No tool is named {choice.name[:64]!r}.", f"{param}.name")


def check_instructions(text: str, limits: DialogueLimits, param: str) -> None:
    """`BadEvent` when they are too long."""
    if len(text) > limits.max_instructions_chars:
        message = f"Expected at most {limits.max_instructions_chars} characters, got {len(text)}."
        raise BadEvent("string_above_max_length", message, param)


class _PromptReference(Struct):
    version: str | None = None


_reference_decoder = msgspec.json.Decoder(_PromptReference | None)


def _prompt_version(instructions: str, params: ResponseParams, config: SessionConfig) -> str:
    """The client's own name for these instructions, else their digest. The session's name is not that of a response's own instructions."""
    named: tuple[Raw, ...] = (params.prompt,)
    if instructions == config.instructions:
        named = (params.prompt, config.prompt)
    for reference in named:
        if reference != NULL and (version := _version(reference)):
            return version
    return f"sha256:{hashlib.sha256(instructions.encode(errors='surrogatepass')).hexdigest()[:12]}"


def _version(reference: Raw) -> str | None:
    """What OpenAI's `prompt` object (`id`, `version`, `variables`) names; nothing else of it is used here."""
    try:
        prompt = _reference_decoder.decode(reference)
    except msgspec.MsgspecError:  # it is only echoed, so that it was never checked
        return None
    return prompt.version[:_MAX_VERSION_CHARS] if prompt is not None and prompt.version else None


def _check_metadata(metadata: dict[str, str] | None) -> None:
    if not metadata:
        return
    if len(metadata) > 16:
        raise BadEvent("invalid_value", "At most 16 metadata pairs are kept.", "response.metadata")
    for key, value in metadata.items():
        if len(key) > 64 or len(value) > 512:
            message = "Metadata keys have at most 64 characters and values 512."
            raise BadEvent("string_above_max_length", message, "response.metadata")


def _given(
    given: tuple[NewInput, ...], timeline: Timeline, *, limits: DialogueLimits, new_id: NewId
) -> tuple[Item | str, ...]:
    items: list[Item | str] = []
    for index, entry in enumerate(given):
        param = f"response.input[{index}]"
        if not isinstance(entry, ItemReference):
            items.append(make_item(entry, new_id=new_id, param=param, max_chars=limits.max_item_chars))
        elif entry.id in timeline:
            items.append(entry.id)
        else:
            raise BadEvent("invalid_value", f"Item with id {entry.id[:64]!r} not found.", f"{param}.id")
    return tuple(items)


def _resolved(given: tuple[Item | str, ...], timeline: Timeline) -> tuple[Item, ...]:
    found = (timeline.get(item) if isinstance(item, str) else item for item in given)
    return tuple(item for item in found if item is not None)


def _dialogue(timeline: Timeline) -> tuple[Item, ...]:
    return tuple(item for item in timeline if _is_settled(item))


def _is_settled(item: Item) -> bool:
    """Whether an item belongs in a prompt: an answer in progress does not, nor a call whose arguments were cut off."""
    return item.status == "completed" or (item.status == "incomplete" and not isinstance(item, FunctionCallItem))
