"""Dialogues with tools: definitions under many names, questions that match one, its call, its result, the answer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

Tool = Mapping[str, object]


@dataclass(frozen=True)
class Kind:
    """One thing a tool may do: how it may be named, what it takes, and how users ask for it."""

    names: tuple[str, ...]
    parameters: tuple[str, ...]
    descriptions: tuple[str, ...]
    slot: str
    asks: Mapping[str, tuple[str, ...]]


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split("|"))


WEATHER = Kind(
    _split(
        "get_weather|get_weather|get_weather|get_current_weather|weather|lookup_weather|fetch_weather|"
        "weather_forecast|check_weather|getWeather"
    ),
    _split("city|city|city|location|place|town"),
    _split(
        "Get the weather in a city.|The current weather.|Look up the weather for a place|Weather by city name|"
        "Get current weather|도시의 날씨를 알려 줍니다."
    ),
    "city",
    {
        "english": (
            "(what is|what's|how is|how's|tell me|can you tell me|check|show me|give me) the weather (like|today|"
            "tomorrow|now|right now|) (in|for|at) {city} (today|now|right now|please|)",
            "(is it|will it be) (raining|sunny|cold|warm|hot|snowing|windy) in {city} (today|tomorrow|now|)",
            "(will it|does it) (rain|snow) in {city} (today|tomorrow|)",
            "(what is the temperature|how warm is it|how cold is it|how hot is it|what temperature is it) in {city}",
            "(weather in {city}|{city} weather|weather {city}|what's it like outside in {city}|i am going to "
            "{city}, how is the weather)",
            "do i need an umbrella in {city}",
        ),
        "korean": (
            "(오늘|내일|지금|) {city} (날씨 어때|날씨가 어때|날씨 어때요|날씨가 어때요|날씨 알려 줘|날씨 알려 "
            "주세요|날씨는 어때|날씨를 알려 줘|날씨|비 와|비가 오나요|기온이 몇 도야|추워|더워|눈이 오나요)",
            "{city}의 (날씨는 어때|날씨를 알려 줘|날씨 알려 주세요|날씨가 궁금해|기온은 몇 도야|날씨가 어떤가요)",
            "{city}에 (비 와|비가 와요|눈이 와|비가 올까)",
        ),
    },
)
TIME = Kind(
    _split(
        "get_time|get_time|get_time|get_current_time|current_time|time|lookup_time|local_time|get_local_time|"
        "getTime|clock"
    ),
    _split("city|city|city|location|place|timezone"),
    _split(
        "Get the time in a city.|The current local time.|Look up the time at a place|What time it is in a city|"
        "도시의 현재 시각을 알려 줍니다."
    ),
    "city",
    {
        "english": (
            "(what time is it|what is the time|what's the time|tell me the time|how late is it|do you know the "
            "time|can you tell me the time|what is the local time|the time please|check the time) (now|right now|"
            ") (in|at) {city} (now|right now|please|)",
            "(time in {city}|{city} time|current time in {city}|local time {city}|which time is it in {city}|"
            "what hour is it in {city})",
        ),
        "korean": (
            "(지금|) {city} (지금|) (몇 시야|몇 시예요|몇 시인가요|몇 시|시간 알려 줘|시간이 어떻게 돼|시간 알려 "
            "주세요|시각 알려 줘)",
            "{city}는 (지금|) (몇 시야|몇 시예요|몇 시인가요|몇 시니)",
            "{city}의 (시간은|시간을 알려 줘|현재 시각은|현재 시간 알려 주세요)",
        ),
    },
)
OTHERS = (
    Kind(
        _split("search|web_search|search_web|lookup|find_information|google"),
        _split("query|topic|q|text"),
        _split("Search the web.|Find information about a topic|Look something up"),
        "topic",
        {
            "english": (
                "(search|search for|look up|google|find information about|find something about|search the web "
                "for) {topic} (please|)",
            ),
            "korean": ("{topic} (검색해 줘|검색해 주세요|찾아 줘|찾아봐|찾아 주세요)",),
        },
    ),
    Kind(
        _split("get_news|news|latest_news|fetch_news"),
        _split("topic|subject|query"),
        _split("Get the news.|Latest news about a topic"),
        "topic",
        {
            "english": (
                "(any news about|what is the news about|news about|latest news on|show me the news about|is "
                "there news on) {topic}",
            ),
            "korean": ("{topic} (뉴스 알려 줘|뉴스 있어|소식 알려 줘|뉴스 보여 줘|최신 뉴스)",),
        },
    ),
    Kind(
        _split("find_restaurant|restaurants|search_restaurants|book_table"),
        _split("city|location|place"),
        _split("Find a restaurant in a city.|Restaurants near a place"),
        "city",
        {
            "english": (
                "(find a restaurant in|where can i eat in|recommend a restaurant in|find me a place to eat in|"
                "book a table in) {city}",
            ),
            "korean": ("{city} (맛집 찾아 줘|식당 찾아 줘|식당 추천해 줘|맛집 알려 줘)",),
        },
    ),
    Kind(
        _split("book_flight|find_flight|search_flights|flights"),
        _split("destination|city|to"),
        _split("Book a flight.|Find flights to a city"),
        "city",
        {
            "english": (
                "(book a flight to|find a flight to|i need a flight to|i want to fly to|search flights to) {city}",
            ),
            "korean": ("{city} (비행기 예약해 줘|항공권 찾아 줘|가는 비행기 찾아 줘|비행기 표 찾아 줘)",),
        },
    ),
    Kind(
        _split("play_music|play_song|music|play"),
        _split("artist|title|query|name"),
        _split("Play music.|Play songs of an artist"),
        "person",
        {
            "english": ("(play|play music by|play a song by|put on|i want to hear music by) {person}",),
            "korean": ("{person} (노래 틀어 줘|음악 틀어 줘|틀어 줘|음악 재생해 줘)",),
        },
    ),
)  # fmt: skip

_CONDITIONS = {
    "english": _split(
        "sunny|cloudy|rainy|snowy|windy|foggy|clear|stormy|light rain|partly cloudy|overcast|warm|cold|hot"
    ),
    "korean": _split("맑음|흐림|비|눈|바람|안개|구름 조금|소나기|폭우|따뜻함|추움"),
}
_FINDINGS = {
    "english": _split(
        "three results found|it is very popular|two tables are free|the first one looks best|a new study was "
        "published|there is one at nine|ready in five minutes|nothing new today|the door is open|all set for "
        "tonight"
    ),
    "korean": _split(
        "결과 세 개를 찾았어요|아주 인기가 많아요|빈자리가 두 개 있어요|첫 번째가 좋아요|새 소식이 있어요|아홉 "
        "시에 하나 있어요|오 분 뒤에 준비돼요|오늘은 새로운 것이 없어요"
    ),
}
_SAY = {
    "english": {
        "weather": "In {city} it is {temperature} degrees, {condition}.",
        "time": "It is {time} in {city} now.",
        "text": "Here is what I found: {text}.",
        "done": "Done! Is there anything else?",
        "error": "I am sorry, that did not work. Shall we try again later?",
        "which": "Gladly! For which city?",
    },
    "korean": {
        "weather": "{city}의 기온은 {temperature}도, 날씨는 {condition}이에요.",
        "time": "{city}의 현재 시각은 {time}이에요.",
        "text": "찾아봤어요: {text}.",
        "done": "다 됐어요! 더 도와드릴까요?",
        "error": "죄송해요, 잘 안 됐어요. 나중에 다시 해 볼까요?",
        "which": "그럼요! 어느 도시인가요?",
    },
}
WITHOUT_CITY = {
    "english": (
        "(what is|what's|how is|tell me) the weather (like|today|)",
        "(what time is it|what is the time|tell me the time)",
    ),
    "korean": ("(오늘|) 날씨 (어때|어때요|알려 줘)", "지금 (몇 시야|몇 시예요)"),
}


def define(kind: Kind, name: str, parameter: str, rng: Random) -> Tool:
    """A function definition as an API client writes it, with small differences in order and detail."""
    parameter_schema: dict[str, object] = {"type": "string"}
    if rng.random() < 0.4:
        parameter_schema["description"] = rng.choice(
            (f"The {parameter}", f"Name of the {parameter}", f"{parameter} name, e.g. Seoul")
        )
    properties: dict[str, object] = {parameter: parameter_schema}
    if rng.random() < 0.15:
        properties["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    parameters: dict[str, object] = {"type": "object", "properties": properties}
    if rng.random() < 0.7:
        parameters["required"] = [parameter]
    if rng.random() < 0.15:
        parameters["additionalProperties"] = False
    function: dict[str, object] = {"name": name}
    if rng.random() < 0.8:
        function["description"] = rng.choice(kind.descriptions)
    function["parameters"] = parameters
    if rng.random() < 0.1:
        function["strict"] = rng.choice((None, True, False))
    return {"type": "function", "function": function}


def draw_tools(kinds: list[Kind], rng: Random) -> list[tuple[Kind, str, str, Tool]]:
    """The kinds as defined tools: (kind, name, parameter, definition)."""
    drawn = []
    for kind in kinds:
        name, parameter = rng.choice(kind.names), rng.choice(kind.parameters)
        drawn.append((kind, name, parameter, define(kind, name, parameter, rng)))
    return drawn


def result_and_answer(kind: Kind, value: str, language: str, rng: Random) -> tuple[str, str]:
    """What the tool may give back for `value`, and what the model says then."""
    say = _SAY[language]
    chance = rng.random()
    if chance < 0.06:
        return json.dumps({"error": rng.choice(("not found", "timeout", "unavailable"))}), say["error"]
    if kind is WEATHER and chance < 0.8:
        temperature, condition = (
            rng.randint(-9, 38),
            rng.choice(_CONDITIONS[rng.choice((language, language, "english"))]),
        )
        pairs = [(rng.choice(("temperature", "temperature", "temp", "temp_c", "degrees")), temperature),
                 (rng.choice(("condition", "weather", "sky", "description", "conditions")), condition)]  # fmt: skip
        if rng.random() < 0.3:
            pairs.reverse()
        if rng.random() < 0.35:
            pairs.insert(0, ("city", value))
        answer = say["weather"].format(city=value, temperature=temperature, condition=condition)
        return json.dumps(dict(pairs), ensure_ascii=False), answer
    if kind is TIME and chance < 0.8:
        time = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
        result = rng.choice((time, json.dumps({rng.choice(("time", "time", "local_time", "now")): time})))
        return result, say["time"].format(city=value, time=time)
    if chance > 0.93:
        return rng.choice(("ok", json.dumps({"status": "ok"}), json.dumps({"ok": True}))), say["done"]
    text = rng.choice(_CONDITIONS[language] if kind is WEATHER else _FINDINGS[language])
    if kind is WEATHER:
        text = f"{text}, {rng.randint(-9, 38)}°C"
    wrapped = json.dumps({rng.choice(("result", "text", "answer", "summary")): text}, ensure_ascii=False)
    return rng.choice((text, wrapped)), say["text"].format(text=text)


def ask_which(language: str) -> str:
    """The question back when a tool needs a city and none was named."""
    return _SAY[language]["which"]
