"""Prompts for the engines' tests, and the reading of their answers."""

import itertools

from msgspec import Raw

from engine.base import Engine
from sessions.generation import Chunk, FunctionTool, Prompt, ToolChoice, Truncation
from sessions.items import FunctionCallItem, FunctionCallOutputItem, InputText, Item, MessageItem, OutputText

_numbers = itertools.count()
WEATHER = FunctionTool(
    name="get_weather",
    description="The weather in a city.",
    parameters=Raw(b'{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}'),
)

# A text cut in two: before a space, within a word, within what is one sign to the eye.
HALVES = [("Hello there,", " and welcome."), ("안녕하", "세요, 반갑습니다!"), ("👩\u200d💻 🇰", "🇷 🤷🏽\u200d♀️")]


def user(text: str) -> MessageItem:
    return MessageItem(id=f"item_{next(_numbers)}", role="user", content=(InputText(text),))


def system(text: str) -> MessageItem:
    return MessageItem(id=f"item_{next(_numbers)}", role="system", content=(InputText(text),))


def assistant(text: str) -> MessageItem:
    return MessageItem(id=f"item_{next(_numbers)}", role="assistant", content=(OutputText(text),))


def call(name: str, arguments: str, call_id: str = "call_1") -> FunctionCallItem:
    return FunctionCallItem(id=f"item_{next(_numbers)}", call_id=call_id, name=name, arguments=arguments)


def output(text: str, call_id: str = "call_1") -> FunctionCallOutputItem:
    return FunctionCallOutputItem(id=f"item_{next(_numbers)}", call_id=call_id, output=text)


def make_prompt(
    *items: Item,
    instructions: str = "You are a guide.",
    tools: tuple[FunctionTool, ...] = (),
    tool_choice: ToolChoice = "auto",
    max_output_tokens: int | None = None,
    truncation: Truncation = "auto",
    session_id: str = "sess_1",
    spoken: str = "",
) -> Prompt:
    return Prompt(
        response_id=f"resp_{next(_numbers)}",
        session_id=session_id,
        instructions=instructions,
        items=items or (user("Hello there! How can I help you?"),),
        tools=tools,
        tool_choice=tool_choice,
        max_output_tokens=max_output_tokens,
        truncation=truncation,
        spoken=spoken,
    )


async def answer(engine: Engine, prompt: Prompt) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(prompt)]


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)
