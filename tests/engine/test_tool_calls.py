"""Tool calls are found however the model's text is cut into pieces."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.tool_calls import ForcedCallParser, HermesParser, forced_call_schema
from sessions.generation import FunctionChoice
from tests.engine.builders import WEATHER, make_prompt

ONE = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Seoul"}}\n</tool_call>'
TRICKY = '<tool_call>{"name":"say","arguments":{"a":"</tool_call> \\" {[","b":[{"c":"\\\\"}],"d":"서울"}}</tool_call>'


def read(pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """The spoken text and the calls, put together."""
    parser = HermesParser()
    spoken = ""
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for piece in pieces:
        text, deltas = parser.feed(piece, [])
        spoken += text
        for delta in deltas:
            if delta.name is not None:
                assert delta.index not in names
                names[delta.index] = delta.name
            arguments[delta.index] = arguments.get(delta.index, "") + delta.arguments
    spoken += parser.finish()[0]
    assert parser.num_calls == len(names)
    return spoken, [(names[index], arguments[index]) for index in sorted(names)]


CASES = {
    "plain": ("Hello < there <tool and so on\n", "Hello < there <tool and so on\n", []),
    "one": (ONE, "", [("get_weather", '{"city": "Seoul"}')]),
    "text first": (f"Let me see.\n{ONE}", "Let me see.", [("get_weather", '{"city": "Seoul"}')]),
    "two": (f"{ONE}\n{TRICKY}\n", "", None),
    "text after": (f"{ONE}\nDone. And more.\n", "Done. And more.", [("get_weather", '{"city": "Seoul"}')]),
    "arguments first": ('<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "", [("f", '{"a": 1}')]),
    "arguments as text": ('<tool_call>{"name": "f", "arguments": "{}"}</tool_call>', "", [("f", "{}")]),
    "no arguments": ('<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
    "escaped name": ('<tool_call>{"name": "f\\u0031", "arguments": {}}</tool_call>', "", [("f1", "{}")]),
    "bad escape": ('<tool_call>{"name": "f\\q", "arguments": {}}</tool_call>', '{"name": "f\\q", "arguments": {}}', []),
    "no json": ("<tool_call>sorry</tool_call>", "sorry", []),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_calls_are_found_however_the_text_is_cut(name: str, size: int) -> None:
    text, expected_text, expected_calls = CASES[name]

    spoken, calls = read([text[start : start + size] for start in range(0, len(text), size)])

    assert spoken == expected_text
    if expected_calls is not None:
        assert calls == expected_calls
    else:
        assert [json.loads(arguments) for _, arguments in calls] == [
            {"city": "Seoul"},
            {"a": '</tool_call> " {[', "b": [{"c": "\\"}], "d": "서울"},
        ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    arguments=st.dictionaries(st.text(), json_values), cuts=st.lists(st.integers(1, 9), min_size=1), ascii=st.booleans()
)
def test_any_arguments_come_through_any_cut(arguments: dict[str, object], cuts: list[int], ascii: bool) -> None:
    text = f"Hm. <tool_call>\n{json.dumps({'name': 'f', 'arguments': arguments}, ensure_ascii=ascii)}\n</tool_call>"
    pieces, rest, number = [], text, 0
    while rest:
        size = cuts[number % len(cuts)]
        pieces.append(rest[:size])
        rest, number = rest[size:], number + 1

    spoken, calls = read(pieces)

    assert spoken == "Hm."
    assert [(name, json.loads(text)) for name, text in calls] == [("f", arguments)]


def test_arguments_stream_before_the_call_is_closed() -> None:
    parser = HermesParser()

    _, first = parser.feed('<tool_call>{"name": "f", "arguments": {"a": "long te', [])

    assert [delta.arguments for delta in first] == ["", '{"a": "long te']


def test_a_call_cut_off_by_the_limit_is_not_spoken() -> None:
    spoken, calls = read(["<tool_call>", '{"name": "f", '])

    assert (spoken, calls) == ("", [])


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_forced_call_needs_no_tags(size: int) -> None:
    parser = ForcedCallParser()
    text = '{"name": "f", "arguments": {"a": "b"}}'

    deltas = [delta for start in range(0, len(text), size) for delta in parser.feed(text[start : start + size], [])[1]]
    deltas += parser.finish()[1]

    assert (deltas[0].name, "".join(delta.arguments for delta in deltas)) == ("f", '{"a": "b"}')
    assert parser.num_calls == 1


def test_a_forced_call_cut_off_gets_no_invented_end() -> None:
    parser = ForcedCallParser()
    parser.feed('{"name": "f", "arguments": {"a": "b', [])

    assert parser.finish() == ("", ())


def test_the_schema_of_a_forced_call_names_what_may_be_called() -> None:
    other = type(WEATHER)(name="other")

    def names(prompt_choice: object) -> list[str]:
        schema = forced_call_schema(make_prompt(tools=(WEATHER, other), tool_choice=prompt_choice))  # type: ignore[arg-type]
        return [] if schema is None else [option["properties"]["name"]["enum"][0] for option in schema["anyOf"]]  # type: ignore[attr-defined]

    assert names("auto") == names("none") == []
    assert names("required") == ["get_weather", "other"]
    assert names(FunctionChoice(name="other")) == ["other"]
    assert forced_call_schema(make_prompt(tool_choice="required")) is None


@given(
    pieces=st.lists(
        st.sampled_from(["Hm", ".\n\n", ". ", " ", "\n", "<", " <tool", "_call", " a", "b <t", "</", ">"]), max_size=12
    )
)
def test_what_is_sent_ends_where_a_piece_ends(pieces: list[str]) -> None:
    """An answer is gone on with after what was sent: from within a token, the model would not go on as it did."""
    parser, sent = HermesParser(), ""
    ends = {"".join(pieces[:number]) for number in range(len(pieces) + 1)}

    for piece in pieces:
        sent += parser.feed(piece, [])[0]
        assert sent in ends

    if "<tool_call>" not in "".join(pieces):
        assert sent + parser.finish()[0] == "".join(pieces)


def test_only_what_may_precede_a_call_waits_for_the_next_piece() -> None:
    parser = HermesParser()

    assert [parser.feed(piece, [])[0] for piece in ("Hm", " so.\n", "And", " <", "b")] == [
        "Hm",
        "",
        " so.\nAnd",
        "",
        " <b",
    ]
