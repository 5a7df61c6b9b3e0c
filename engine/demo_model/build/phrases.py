"""Reads english.txt and korean.txt, and writes one user's sentence: a grammar, slots, and the noise of real typing."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from engine.demo_model.build.words import ENGLISH, KOREAN, Words, held_out, trained

HERE = Path(__file__).parent
LANGUAGES = ("english", "korean")
WORDS: Mapping[str, Words] = {"english": ENGLISH, "korean": KOREAN}


def _choices(text: str) -> list[str]:
    return text.split("|")


_CHOICE = re.compile(r"\(([^()]*)\)")
_SLOT = re.compile(r"\{(\w+)\}")
_NUMBERS = {
    "english": _choices("zero|one|two|three|four|five|six|seven|eight|nine|ten"),
    "korean": _choices("영|일|이|삼|사|오|육|칠|팔|구|십"),
}
_OPERATIONS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "english": {"+": ("plus",), "-": ("minus",), "*": ("times", "multiplied by")},
    "korean": {"+": ("더하기",), "-": ("빼기",), "*": ("곱하기",)},
}
_BEFORE = {
    "english": _choices(
        "hey,|so,|um,|okay,|please,|excuse me,|by the way,|flueman,|one question:|well,|hello,|hi,|oh,|and|now"
    ),
    "korean": _choices(
        "음,|저기,|저기요,|혹시|그럼|그런데|있잖아,|플루먼,|근데|안녕하세요,|자,|그리고|아,|질문인데|어,|저는|나는|제가|너는"
    ),
}
_AFTER = {
    "english": _choices("please|then|now|flueman|my friend|for me|again|thanks|if you can|today"),
    "korean": _choices("플루먼|응|네|좀|지금|부탁해|친구야|빨리|오늘"),
}
_ENDS = (("", 36), ("?", 34), (".", 14), ("!", 9), ("??", 2), ("...", 2), ("~", 2), (" ?", 1))
# Around a question that begins with a question word: asked indirectly, it is the same question.
_INDIRECT = _choices(
    "tell me,|please tell me|can you tell me|could you tell me|could you please tell me|do you know|i would like to know"
    "|i'd like to know|i want to know|say,|i wonder|can you say|do you happen to know|explain to me|let me know|may i ask"
)
_QUESTION = re.compile(r"(what|who|how|where|when|which|why)\b")
_KOREAN_QUESTION = re.compile(
    r"(뭐|누구|어디|언제|며칠|무엇|얼마|몇 ?\S{1,2}?)(이야|야|예요|이에요|인가요|이니|니|인가|입니까|이죠|죠)$"
)
_KOREAN_INDIRECT = _choices(
    "알려 줘|알려 주세요|말해 줘|말해 주세요|궁금해|궁금해요|알아|알아요|아세요|아나요|모르겠어|알고 싶어|알고 싶어요"
)
_KOREAN_REQUEST = re.compile(r"( ?)(줘|주세요)$")
_KOREAN_REQUESTS = _choices(
    "줘|주세요|줄래|줄래요|주실래요|줄 수 있어|줄 수 있어요|줄 수 있나요|주실 수 있나요|주시겠어요|줘요|주십시오|주라|줘 봐"
)
# Forms of one meaning; a sentence may change one for another of its row.
_FORMS = {
    "english": [
        _choices(row)
        for row in (
            "i am|i'm|im",
            "what is|what's|whats|what exactly is",
            "you are|you're|youre|u are",
            "do not|don't|dont",
            "can you|could you|would you|will you|are you able to|can you please",
            "tell me|could you tell me|please tell me|i want you to tell me|would you tell me|let me hear|just tell me",
            "i want|i would like|i'd like|i'd love|i need|i really want",
            "how do i|how can i|how could i|how should i|what must i do to|how does one",
            "give me|could you give me|please give me|can i have|i would like|let me have",
            "how many|what number of",
            "do you have|have you got|have you|do you own",
            "very|really|so|quite",
            "today|now|right now|this evening|at the moment",
        )
    ],
    "korean": [
        _choices(row)
        for row in (
            "어때|어때요|어떤가요|어떠니|어떠세요|어떻습니까|어떤지 알려 줘|어떤지 궁금해",
            "있어|있어요|있나요|있니|있습니까|있을까|있을까요|있죠|있는 거야",
            "돼|돼요|되나요|되니|될까|될까요|되죠|되는 거야",
            "뭐야|뭐예요|무엇인가요|뭔가요|뭐니|뭐죠|뭘까요|무엇이에요|무엇입니까|뭐지|무엇이죠",
            "누구야|누구예요|누구세요|누구인가요|누구니|누구죠|누구신가요|누구십니까",
            "어디야|어디예요|어디인가요|어디죠|어디니|어디입니까|어디지",
            "개야|개예요|개인가요|개죠|개니|개입니까",
            "시야|시예요|시인가요|시죠|시쯤이야|시쯤이에요|시쯤인가요|시니|시쯤 되나요",
            "알아|알아요|아세요|아나요|아니|알고 있어|알고 계세요|알고 있나요",
            "싶어|싶어요|싶습니다|싶은데|싶은데요|싶네요",
            "고마워|고마워요|고맙습니다|감사합니다|감사해요",
            "했어|했어요|했나요|했니|했죠|했습니까",
            "에 대해|에 대해서|에 관해|에 대한 것을|에 관해서",
            "도와줘|도와주세요|도와줄래|도와주실래요|도와주시겠어요",
            "들려줘|들려주세요|들려줄래|들려주실래요|들려주시겠어요",
        )
    ],
}
# Words that may stand anywhere and change nothing.
_BESIDE = {
    "english": _choices(
        "really|just|actually|please|now|today|so|very|maybe|again|exactly|simply|a bit|a little|right now|well|then|still"
        "|quite|too|also|nice|my friend|perhaps|some|for me|always|here|this|that|good|one"
    ),
    "korean": _choices(
        "정말|좀|한번|지금|오늘|아주|너무|혹시|조금|그냥|진짜|다시|이제|제발|먼저|꼭|잠깐|또|그럼|도대체|대체|아까|방금|계속"
    ),
}
# A word ending in a consonant takes the longer form of these Korean endings.
_PARTICLES = (
    ("이라고", "라고"),
    ("이라는", "라는"),
    ("이에요", "예요"),
    ("이야", "야"),
    ("은", "는"),
    ("을", "를"),
    ("이란", "란"),
)


@dataclass
class Intent:
    """One thing a user may want, the ways to say it, the answers that are right, and ways that are kept for measuring.

    `blind` ones were written when the training's phrases were finished, so that nothing was bettered with them in mind.
    """

    name: str
    asks: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)
    blind: list[str] = field(default_factory=list)


def read_intents(language: str) -> dict[str, Intent]:
    """All intents of a language by name, from its text file."""
    intents: dict[str, Intent] = {}
    for line in (HERE / f"{language}.txt").read_text(encoding="utf-8").splitlines():
        mark, _, rest = line.partition(" ")
        if mark == "#" and rest.isidentifier():
            intents[rest] = Intent(rest)
        elif mark in ("?", "=", "!", "!!"):
            intent = intents[next(reversed(intents))]
            lists = {"?": intent.asks, "=": intent.answers, "!": intent.held_out, "!!": intent.blind}
            lists[mark].append(rest.strip())
    return intents


def fill(text: str, slots: Mapping[str, str]) -> str:
    """`text` with its {slots} filled in."""
    return _SLOT.sub(lambda match: slots[match[1]], text)


def expand(grammar: str, rng: Random) -> str:
    """One sentence of a grammar: every (a|b|) becomes one of its choices."""
    while _CHOICE.search(grammar):
        grammar = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), grammar)
    return re.sub(r"\s+(?=,)", "", re.sub(r"\s+", " ", grammar)).strip()


def key(text: str) -> str:
    """What makes two sentences the same phrasing: their letters."""
    return "".join(char for char in text.lower() if char.isalnum())


def number(value: int, language: str, rng: Random) -> str:
    """A number as digits, or as a word one time in three."""
    words = _NUMBERS[language]
    return words[value] if value < len(words) and rng.random() < 0.35 else str(value)


def invented_name(language: str, rng: Random) -> str:
    """A name nobody has, so that the model must copy it rather than know it."""
    return "".join(rng.choice(WORDS[language].syllables) for _ in range(rng.choice((2, 2, 3)))).capitalize()


def draw_slots(language: str, rng: Random, *, unseen: bool) -> dict[str, str]:
    """Fillers for all slots; `unseen` draws the words that training never shows."""
    words = WORDS[language]
    part = held_out if unseen else trained
    country, capital = rng.choice(words.capitals)
    name = rng.choice(part(words.names)) if rng.random() < 0.4 else invented_name(language, rng)
    operation = rng.choice("++-*")
    limit = 5 if operation == "*" else 10
    a, b = rng.randint(0, limit), rng.randint(0, limit)
    if operation == "-" and a < b:
        a, b = b, a
    spoken = rng.choice(_OPERATIONS[language][operation])
    sign = rng.choice((spoken, spoken, operation))
    shown = (number(a, language, rng), number(b, language, rng)) if sign == spoken else (str(a), str(b))
    joint = "" if sign == operation and rng.random() < 0.5 else " "
    heard = (part(words.names), part(words.cities), part(words.topics))
    said = [rng.choice((invented_name(language, rng), rng.choice(rng.choice(heard)))) for _ in range(rng.randint(1, 4))]
    return {
        "echo": rng.choice((" ", ", ")).join(said),
        "name": name,
        "city": rng.choice(part(words.cities)) if rng.random() < 0.75 else invented_name(language, rng),
        "topic": rng.choice(part(words.topics)) if rng.random() < 0.75 else invented_name(language, rng).lower(),
        "task": rng.choice(part(words.tasks)),
        "person": rng.choice(part(words.persons)) if rng.random() < 0.75 else invented_name(language, rng),
        "country": country,
        "capital": capital,
        "unknown_country": rng.choice(part(words.unknown_countries)),
        "sum": f"{shown[0]}{joint}{sign}{joint}{shown[1]}",
        "a": str(a),
        "b": str(b),
        "op": _OPERATIONS[language][operation][0],
        "result": str({"+": a + b, "-": a - b, "*": a * b}[operation]),
    }


def with_particle(text: str, word: str) -> str:
    """`text` with the Korean particle right after `word` agreeing with its last syllable."""
    last = ord(word[-1])
    if not 0xAC00 <= last <= 0xD7A3:
        return text
    closed = (last - 0xAC00) % 28 != 0
    for long, short in _PARTICLES:
        right, wrong = (long, short) if closed else (short, long)
        text = re.sub(f"{re.escape(word)}{wrong}(?=[ ,?!.]|$)", word + right, text)
    return text


def _typo(text: str, rng: Random) -> str:
    """One letter dropped, doubled or swapped with the next."""
    at = rng.randrange(1, len(text) - 1)
    return rng.choice((text[:at] + text[at + 1 :], text[:at] + text[at] + text[at:],
                       text[:at] + text[at + 1] + text[at] + text[at + 2 :]))  # fmt: skip


def dress(text: str, language: str, rng: Random, *, typos: bool) -> str:
    """`text` as somebody might type it: with or without capitals, spaces and a final mark, now and then with a typo."""
    style = rng.random()
    if language == "english" and style < 0.5:
        text = re.sub(r"\bi\b", "I", text[0].upper() + text[1:])
    elif language == "english" and typos and style < 0.55:
        text = text.upper()
    elif language == "korean" and typos and style < 0.15:
        text = text.replace(" ", "", rng.choice((1, 2, 9)))
    if typos and len(text) > 8 and rng.random() < 0.1:
        text = _typo(text, rng)
    marks, weights = zip(*_ENDS, strict=True)
    return text if text[-1] in "?!.~" else text + rng.choices(marks, weights)[0]


def _reworded(text: str, language: str, rng: Random) -> str:
    """The same wish in another form: a question asked indirectly, a request more or less polite."""
    for row in rng.sample(_FORMS[language], k=len(_FORMS[language])):
        form = next(
            (
                form
                for form in sorted(row, key=len, reverse=True)
                if re.search(rf"(?<!\S){form}(?!\S)", text) or (language == "korean" and text.endswith(form))
            ),
            None,
        )
        if form is not None and rng.random() < 0.4:
            text = re.sub(rf"{form}(?!\S)", rng.choice(row), text, count=1)
            break
    if language == "english":
        if _QUESTION.match(text) and rng.random() < 0.25:
            return f"{rng.choice(_INDIRECT)} {text}"
        return text
    if _KOREAN_REQUEST.search(text) and rng.random() < 0.5:
        return _KOREAN_REQUEST.sub(rf"\1{rng.choice(_KOREAN_REQUESTS)}", text)
    if _KOREAN_QUESTION.search(text) and rng.random() < 0.4:
        asked = _KOREAN_QUESTION.sub(r"\1인지", text).replace("뭐인지", "뭔지")
        return f"{asked} {rng.choice(_KOREAN_INDIRECT)}"
    return text


def _disturbed(text: str, language: str, rng: Random) -> str:
    """The same wish with a word more or less, so that no single small word decides."""
    words = text.split(" ")
    chance = rng.random()
    if chance < 0.2 and language == "english":
        words.insert(rng.randint(0, len(words)), rng.choice(_BESIDE[language]))
    elif chance < 0.15 or (chance < 0.2 and len(words) < 2):
        words.insert(rng.randrange(len(words)), rng.choice(_BESIDE[language]))
    elif chance < 0.26 and len(words) > 3:
        at = rng.randrange(len(words))
        words = words[:at] + ([words[at]] if "{" in words[at] else []) + words[at + 1 :]
    return " ".join(words)


def phrase(grammar: str, slots: Mapping[str, str], language: str, rng: Random) -> str:
    """One training sentence of a grammar: expanded, filled, perhaps with small words around it, and dressed."""
    text = _reworded(expand(grammar, rng), language, rng)
    if "{name}" not in text and "{echo}" not in text:  # what is to be copied must have clear ends
        text = _disturbed(text, language, rng)
    if rng.random() < 0.2:
        text = f"{rng.choice(_BEFORE[language])} {text}"
    if rng.random() < 0.08 and not text.endswith("}"):
        text = f"{text} {rng.choice(_AFTER[language])}"
    protected = {name: f"{{{name}}}" for name in slots}
    if not _SLOT.search(text):
        return dress(text, language, rng, typos=True)
    text = fill(dress(fill(text, protected), language, rng, typos=False), slots)
    return with_particles(text, slots) if language == "korean" else text


def with_particles(text: str, slots: Mapping[str, str]) -> str:
    """`text` with the particle after each filled slot put right."""
    for word in slots.values():
        if word in text:
            text = with_particle(text, word)
    return text
