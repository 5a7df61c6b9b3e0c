"""Writes the dialogues the demo model is trained on, and the held-out questions it is measured with.

Everything comes from english.txt, korean.txt, words.py and a seed. A held-out phrasing never occurs in a dialogue.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from engine.demo_model.build.phrases import (
    LANGUAGES,
    WORDS,
    Intent,
    draw_slots,
    dress,
    expand,
    fill,
    key,
    phrase,
    read_intents,
    with_particles,
)
from engine.demo_model.build.tools import (
    OTHERS,
    TIME,
    WEATHER,
    WITHOUT_CITY,
    Kind,
    Tool,
    ask_which,
    draw_tools,
    result_and_answer,
)

INTENTS: Mapping[str, Mapping[str, Intent]] = {language: read_intents(language) for language in LANGUAGES}
HELD_OUT = frozenset(
    key(text)
    for intents in INTENTS.values()
    for intent in intents.values()
    for text in (*intent.held_out, *intent.blind)
    if "{" not in text
)
_WEIGHTS = {
    "unknown": 12.0,
    "sum": 10.0,
    "name_tell": 5.0,
    "repeat": 2.5,
    "capital": 3.0,
    "greet": 2.0,
    "name_unknown": 2.0,
    "story": 0.5,
    "who_are_you": 1.6,
    "what_can_you_do": 1.6,
    "how_rate": 1.6,
    "what_is_flueman": 1.6,
    "your_name": 1.4,
}
# Short things that people say twice in other words.
_DOUBLED = frozenset(("greet", "how_are_you", "user_is_well", "user_is_sad", "stop", "thanks", "bye", "compliment", "insult", "yes", "no",
                      "sorry", "are_you_there"))  # fmt: skip
_SYSTEM = {
    "english": (
        "You are (a helpful|a friendly|a polite|a cheerful|an expert|a patient|a) (assistant|avatar|digital "
        "human|guide|teacher|companion|support agent|receptionist|tutor) (in {city}|for {topic}|of a museum|of a "
        "bank|who likes {topic}|).",
        "(Answer|Reply|Respond|Speak) (briefly|in short sentences|warmly|politely|kindly|clearly|in one sentence|"
        "in English|in the user's language|like a friend|with emotion).",
        "(Never|Do not|Don't|Always|Please) (mention {topic}|talk about {topic}|be polite|use emojis|be honest|"
        "ask back|give advice about {topic}|make things up|repeat yourself|reveal these instructions).",
        "(The user is called|Today you meet|Your customer is) {name}. (They like|They live in|They ask about) {topic}.",
        "(Use the tools when they help.|If you do not know, say so.|Keep it safe.|You are speaking aloud, so no "
        "lists.|Your knowledge ends in 2024.|Be concise.|You love {topic}.|Your voice is calm.)",
    ),
    "korean": (
        "당신은 (친절한|다정한|유능한|밝은|전문적인|) (도우미|비서|아바타|디지털 휴먼|안내원|선생님|상담원|"
        "친구)입니다.",
        "(짧게|친절하게|한국어로|한 문장으로|공손하게|따뜻하게|자연스럽게) (대답하세요|답변하세요|말하세요|답해 "
        "주세요).",
        "({topic} 이야기는 하지 마세요|언제나 정직하세요|이모지를 쓰지 마세요|모르면 모른다고 하세요|{city}에서 "
        "일합니다|목록을 쓰지 마세요|{topic}을 좋아합니다|사용자의 이름은 {name}입니다).",
    ),
}


@dataclass(frozen=True)
class Message:
    """One message as the chat template takes it; `trained` is false for an answer that was cut off."""

    role: str
    content: str = ""
    call: tuple[str, Mapping[str, str]] | None = None
    trained: bool = True

    def as_dict(self) -> dict[str, object]:
        message: dict[str, object] = {"role": self.role, "content": self.content}
        if self.call:
            message["tool_calls"] = [{"function": {"name": self.call[0], "arguments": dict(self.call[1])}}]
        return message


@dataclass
class Dialogue:
    """A conversation, and the tools defined for it."""

    messages: list[Message] = field(default_factory=list)
    tools: list[Tool] = field(default_factory=list)

    def say(self, role: str, content: str = "", **more: object) -> None:
        self.messages.append(Message(role, content, **more))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Question:
    """A held-out question with every answer that counts as right."""

    intent: str
    text: str
    answers: tuple[str, ...]


def _ask(intent: Intent, slots: Mapping[str, str], language: str, rng: Random) -> str:
    while True:
        grammar = rng.choices(intent.asks, [min(len(ask), 400) for ask in intent.asks])[0]
        if intent.name in _DOUBLED and rng.random() < 0.15:
            grammar = f"{expand(grammar, rng)}, {rng.choice(intent.asks)}"
        text = phrase(grammar, slots, language, rng)
        if key(text) not in HELD_OUT:
            return text


def _slots(language: str, rng: Random) -> dict[str, str]:
    slots = draw_slots(language, rng, unseen=False)
    if rng.random() < 0.12:
        slots["name"], slots["city"] = slots["name"].lower(), slots["city"].lower()
    return slots


def _answer(intent: Intent, slots: Mapping[str, str], used: set[str], rng: Random) -> str:
    fresh = [answer for answer in intent.answers if answer not in used] or intent.answers
    chosen = rng.choice(fresh)
    used.add(chosen)
    return fill(chosen, slots)


def _turn(dialogue: Dialogue, name: str, language: str, known: list[str], used: set[str], rng: Random) -> None:
    """Adds one question of intent `name` and its answer."""
    slots = _slots(language, rng)
    intents = INTENTS[language]
    dialogue.say("user", _ask(intents[name], slots, language, rng))
    replying = intents[name]
    if name == "name_tell":
        known[:] = [slots["name"]]
    elif name == "name_unknown" and known:
        replying, slots["name"] = intents["name_known"], known[0]
    answer = _answer(replying, slots, used, rng)
    cut = rng.random() < (0.3 if name == "story" else 0.02)
    if cut:
        words = answer.split(" ")
        dialogue.say("assistant", " ".join(words[: rng.randrange(1, len(words) + 1)]), trained=False)
        if rng.random() < 0.4:
            _turn(dialogue, "stop", language, known, used, rng)
    else:
        dialogue.say("assistant", answer)


def _plan(language: str, turns: int, rng: Random) -> list[str]:
    intents = INTENTS[language]
    names = [name for name in intents if name != "name_known"]
    plan = rng.choices(names, [_WEIGHTS.get(name, 1.0) for name in names], k=turns)
    if turns > 1 and rng.random() < 0.4:
        plan[rng.randrange(turns - 1)] = "name_tell"
        plan[-1] = "name_unknown"
    elif turns > 1 and rng.random() < 0.2:
        plan[-2:] = [rng.choice(("joke", "story", "riddle", "fun_fact", "poem"))] * 2
    return plan


def _system(language: str, rng: Random) -> tuple[str, list[str]]:
    """A system prompt, and the user's name if it tells one."""
    slots = _slots(language, rng)
    lines = [expand(line, rng) for line in rng.sample(_SYSTEM[language], k=rng.choice((1, 1, 1, 2, 2, 3)))]
    told = [slots["name"]] if any("{name}" in line for line in lines) else []
    return rng.choice((" ", " ", "\n")).join(fill(line, slots) for line in lines), told


def _tool_turn(dialogue: Dialogue, tool: tuple[Kind, str, str, Tool], language: str, rng: Random) -> None:
    """Adds a question that a defined tool answers, the call, its result and the answer."""
    kind, name, parameter, _ = tool
    slots = _slots(language, rng)
    value = slots[kind.slot]
    if kind in (WEATHER, TIME) and rng.random() < 0.12:
        vague = WITHOUT_CITY[language][0 if kind is WEATHER else 1]
        dialogue.say("user", phrase(vague, slots, language, rng))
        dialogue.say("assistant", ask_which(language))
        short = "(in|for|) {city} (please|)" if language == "english" else "{city}(요|이요|)"
        dialogue.say("user", phrase(short, slots, language, rng))
    else:
        dialogue.say("user", phrase(rng.choice(kind.asks[language]), slots, language, rng))
    dialogue.say("assistant", call=(name, {parameter: value}))
    result, answer = result_and_answer(kind, value, language, rng)
    dialogue.say("tool", result)
    dialogue.say("assistant", answer)


def _with_tools(dialogue: Dialogue, language: str, known: list[str], rng: Random) -> None:
    kinds = [rng.choice((WEATHER, WEATHER, TIME, TIME, *OTHERS))]
    others = [kind for kind in (WEATHER, TIME, *OTHERS) if kind is not kinds[0]]
    kinds += rng.sample(others, k=rng.choice((0, 0, 1, 1, 2)))
    rng.shuffle(kinds)
    drawn = draw_tools(kinds, rng)
    dialogue.tools = [tool[3] for tool in drawn]
    used: set[str] = set()
    absent = {"ask_weather": WEATHER, "ask_time": TIME}
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        if rng.random() < 0.7:
            _tool_turn(dialogue, rng.choice(drawn), language, rng)
        else:
            name = _plan(language, 1, rng)[0]
            if name != "unknown" and absent.get(name) not in kinds:
                _turn(dialogue, name, language, known, used, rng)
            else:
                _turn(dialogue, "greet", language, known, used, rng)


def make_dialogue(rng: Random) -> Dialogue:
    """One training dialogue: one to six turns in one language (now and then both), with or without system prompt and tools."""
    language = rng.choice(LANGUAGES)
    dialogue = Dialogue()
    known: list[str] = []
    if rng.random() < 0.18:
        system, known = _system(rng.choice((language, language, "english")), rng)
        dialogue.say("system", system)
    if rng.random() < 0.05:
        _with_tools(dialogue, language, known, rng)
        return dialogue
    used: set[str] = set()
    for name in _plan(language, rng.choices((1, 2, 3, 4, 5, 6), (78, 12, 4, 3, 2, 1))[0], rng):
        if rng.random() < 0.04:
            language = rng.choice(LANGUAGES)
        _turn(dialogue, name, language, known, used, rng)
    return dialogue


def held_out_questions(language: str, *, blind: bool = False, seed: int = 7) -> Sequence[Question]:
    """Every held-out (or blind) phrasing of a language, those with slots three times with words never trained on."""
    rng = Random(seed)
    questions = []
    for intent in INTENTS[language].values():
        for text in intent.blind if blind else intent.held_out:
            for _ in range(3 if "{" in text else 1):
                slots = draw_slots(language, rng, unseen=True)
                asked = fill(dress(text, language, rng, typos=False), slots)
                asked = with_particles(asked, slots) if language == "korean" else asked
                questions.append(Question(intent.name, asked, tuple(fill(answer, slots) for answer in intent.answers)))
    return questions


__all__ = ["INTENTS", "LANGUAGES", "WORDS", "Dialogue", "Message", "Question", "held_out_questions", "make_dialogue"]
