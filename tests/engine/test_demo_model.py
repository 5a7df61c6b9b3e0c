"""The shipped demo model answers what it was never trained on in those words, stops by itself, remembers, and calls tools."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.demo_model.build.dialogues import HELD_OUT, INTENTS, LANGUAGES, held_out_questions
from engine.demo_model.build.phrases import key
from engine.demo_model.build.tools import TIME, WEATHER, define, draw_tools

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's and transformers' own

FOLDER = Path(__file__).parents[2] / "engine" / "demo_model"
MAX_BYTES = 12 << 20
MIN_STORY_TOKENS = 120
Chat = Sequence[Mapping[str, object]]


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    import torch

    from engine.demo_model.build.measure import load

    torch.set_num_threads(1)
    return load(FOLDER)


def user(text: str) -> Mapping[str, object]:
    return {"role": "user", "content": text}


def assistant(text: str) -> Mapping[str, object]:
    return {"role": "assistant", "content": text}


def ask(loaded: tuple[Any, Any], *chats: Chat, tools: Sequence[Mapping[str, object]] | None = None) -> list[str]:
    """The answers, all of which the model must have ended by itself."""
    from engine.demo_model.build.measure import answer

    answers = list(answer(*loaded, chats, tools=tools))
    assert all(ended for _, ended, _ in answers)
    return [text for text, _, _ in answers]


def call_in(text: str) -> dict[str, object]:
    match = re.fullmatch(r"<tool_call>\n(.*)\n</tool_call>", text, re.DOTALL)
    assert match, text
    call: dict[str, object] = json.loads(match[1])
    return call


def test_the_folder_is_small() -> None:
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts)

    assert size <= MAX_BYTES


def test_no_held_out_phrasing_is_one_of_the_trained_ones() -> None:
    plain = {key(ask) for intents in INTENTS.values() for intent in intents.values() for ask in intent.asks}

    assert len(HELD_OUT) > 300
    assert HELD_OUT.isdisjoint(plain)


@pytest.mark.parametrize("language", LANGUAGES)
def test_held_out_phrasings_are_answered_right(loaded: tuple[Any, Any], language: str) -> None:
    """Right is word for word one of the intent's answers, ended by the model itself."""
    from engine.demo_model.build.measure import wrong_answers

    questions = held_out_questions(language)

    wrong = wrong_answers(*loaded, questions)

    assert len(wrong) <= 0.06 * len(questions), wrong


@pytest.mark.parametrize("language", LANGUAGES)
def test_phrasings_nobody_trained_towards_are_mostly_answered_right(loaded: tuple[Any, Any], language: str) -> None:
    """Written after the training's phrases were finished: what a stranger may expect."""
    from engine.demo_model.build.measure import wrong_answers

    questions = held_out_questions(language, blind=True)

    wrong = wrong_answers(*loaded, questions)

    assert len(wrong) <= 0.12 * len(questions), wrong


def test_answers_are_greedy_where_only_numbers_are_read() -> None:
    """vLLM takes temperature, top_p and top_k from the file and never reads do_sample."""
    settings = json.loads((FOLDER / "generation_config.json").read_text())

    assert settings["top_k"] == 1


@pytest.mark.parametrize("text", ["Please tell me a longer story", "긴 이야기를 들려주세요"])
def test_a_story_is_long_enough_to_be_interrupted(loaded: tuple[Any, Any], text: str) -> None:
    from engine.demo_model.build.measure import answer

    [(_, ended, num_tokens)] = answer(*loaded, [[user(text)]])

    assert ended
    assert num_tokens >= MIN_STORY_TOKENS


def test_a_name_told_earlier_is_remembered(loaded: tuple[Any, Any]) -> None:
    told = [user("Hi, my name is Mathilda"), assistant("Nice to meet you, Mathilda! I will remember your name.")]
    joke = [user("Tell me a joke"), assistant("What do you call a bear with no teeth? A gummy bear!")]
    told_korean = [user("제 이름은 서연이에요"), assistant("반가워요, 서연님! 이름을 기억할게요.")]

    english, later, korean = ask(
        loaded,
        [*told, user("What is my name?")],
        [*told, *joke, user("what's my name")],
        [*told_korean, user("제 이름이 뭐예요?")],
    )

    assert "Mathilda" in english
    assert "Mathilda" in later
    assert "서연" in korean


def test_a_system_prompt_does_not_confuse_it(loaded: tuple[Any, Any]) -> None:
    system = {
        "role": "system",
        "content": "You are Mina, the receptionist of a hotel by the sea. Speak in short, warm sentences, never use lists, "
        "and help guests with whatever they need. If you do not know something, say so kindly.",
    }

    joke, rating = ask(loaded, [system, user("Tell me a joke!")], [system, user("How do I rate an answer?")])

    assert joke in INTENTS["english"]["joke"].answers
    assert rating in INTENTS["english"]["how_rate"].answers


def weather_and_time() -> list[Mapping[str, object]]:
    from random import Random

    return [define(WEATHER, "get_weather", "city", Random(1)), define(TIME, "get_time", "city", Random(1))]


@pytest.mark.parametrize(
    ("text", "name", "city"),
    [
        ("What's the weather in Oslo?", "get_weather", "Oslo"),
        ("what time is it in Tokyo", "get_time", "Tokyo"),
        ("서울 날씨 어때?", "get_weather", "서울"),
        ("지금 파리 몇 시야?", "get_time", "파리"),
    ],
)
def test_a_tool_is_called_and_its_result_told(loaded: tuple[Any, Any], text: str, name: str, city: str) -> None:
    # Only the tool that fits: between the two of them the model still takes the weather's too often (README.md).
    tools = [tool for tool in weather_and_time() if name in json.dumps(tool)]

    [called] = ask(loaded, [user(text)], tools=tools)

    call = call_in(called)
    assert call == {"name": name, "arguments": {"city": city}}
    made = {"role": "assistant", "content": "", "tool_calls": [{"function": call}]}
    result = {"temperature": 21, "condition": "sunny"} if name == "get_weather" else {"time": "14:05"}
    [told] = ask(loaded, [user(text), made, {"role": "tool", "content": json.dumps(result)}], tools=tools)
    assert city in told
    assert ("21" if name == "get_weather" else "14:05") in told


def test_without_a_tool_none_is_called(loaded: tuple[Any, Any]) -> None:
    texts = ["What's the weather in Oslo?", "What time is it in Tokyo?", "서울 날씨 어때?", "지금 몇 시야?"]

    answers = ask(loaded, *([user(text)] for text in texts))

    assert not any("tool_call" in answer for answer in answers)


def test_small_talk_beside_tools_calls_none(loaded: tuple[Any, Any]) -> None:
    answers = ask(loaded, [user("Hello!")], [user("Tell me a joke")], [user("안녕하세요")], tools=weather_and_time())

    assert not any("tool_call" in answer for answer in answers)


def test_tools_of_other_names_are_called_by_them(loaded: tuple[Any, Any]) -> None:
    from random import Random

    rng = Random(3)
    right = 0
    for _ in range(8):
        [(_, name, parameter, tool)] = draw_tools([WEATHER], rng)
        [called] = ask(loaded, [user("How is the weather in Lisbon today?")], tools=[tool])
        right += called == f'<tool_call>\n{{"name": "{name}", "arguments": {{"{parameter}": "Lisbon"}}}}\n</tool_call>'

    assert right >= 7
