"""Tool calls are found however the model's text is cut into pieces, and only those of tools that were offered."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from engine.base import EngineError
from engine.tool_calls import ForcedCallParser, HermesParser, OfferedCalls, forced_call_schema, offered_names
from sessions.generation import FunctionChoice, FunctionTool, ToolCallDelta
from tests.engine.builders import WEATHER, make_prompt

ONE = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Seoul"}}\n</tool_call>'
TRICKY = '<tool_call>{"name":"say","arguments":{"a":"</tool_call> \\" {[","b":[{"c":"\\\\"}],"d":"서울"}}</tool_call>'
STRANGE = '<tool_call>\n{"name": "delete_account", "arguments": {"now": true}}\n</tool_call>'
OFFERED = {"get_weather", "say", "f", "f1"}


def read(pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """The spoken text and the calls, put together."""
    parser = HermesParser(OFFERED)
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
    assert len(names) - parser.num_calls in (0, 1)  # the last may have been cut off
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
}
# What is no call of an offered tool: said as it was written.
TEXTS = {
    "bad escape": '<tool_call>{"name": "f\\q", "arguments": {}}</tool_call>',
    "no json": "<tool_call>sorry</tool_call>",
    "no name": '<tool_call>{"arguments": {}}</tool_call> then',
    "no end": "You write <tool_call> and then the call.",
    "nothing": "<tool_call></tool_call>",
    "strange": STRANGE,
    "strange among text": f"Let me see.\n\n{STRANGE}\nDone. And more.\n",
    "strange twice": f"{STRANGE}\n{STRANGE} \n",
    "strange without arguments": 'So: <tool_call>{"name": "delete_account"}</tool_call>',
    "strange at the end": '<tool_call>{"arguments": {"a": "{}"}, "name": "delete_account"}</tool_call>',
    "strange in disguise": '<tool_call>{"name": "delete\\u005faccount", "arguments": {}}</tool_call>',
    "strange name of another kind": '<tool_call>{"name": ["f"], "arguments": {}}</tool_call>',
    "nearly": '<tool_call>{"name": "get_weather ", "arguments": {}}</tool_call>',
    "an offered one within": '<tool_call>{"name":"delete_account","arguments":{"a":"<tool_call>{\\"name\\": \\"f\\"}"}}</tool_call>',
}
CALLED = [("get_weather", '{"city": "Seoul"}')]
CASES |= {name: (text, text, []) for name, text in TEXTS.items()}
CASES |= {
    "strange first": (f"Hm.\n{STRANGE}\n{ONE}\n", f"Hm.\n{STRANGE}", CALLED),
    "strange last": (f"Hm.\n{ONE}\n{STRANGE}\n", f"Hm.{STRANGE}", CALLED),
    "strange open": (f"<tool_call>{ONE}", "<tool_call>", CALLED),
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


SNIPPETS = ["Hm", ".\n", " ", "\n", "<", "<tool", "_call", ">", "<tool_call>", "</tool_call>", "{", "}", ONE, STRANGE]
SNIPPETS += ['{"name": "', "f", "delete", '", ', '"arguments": ', "{}", '"name": "f"}']
written = st.lists(st.sampled_from(SNIPPETS), max_size=14)


@given(pieces=written)
def test_who_goes_on_with_what_was_said_comes_to_the_same_answer(pieces: list[str]) -> None:
    """P4: what was said of a call that was not offered is gone on with like any text, wherever it was cut."""
    whole, parser, sent = read(pieces), HermesParser(OFFERED), ""

    for number, piece in enumerate(pieces, 1):
        text, calls = parser.feed(piece, [])
        sent += text
        if calls:  # those are made again from the first text on
            break
        held = "".join(pieces[:number])
        assert held.startswith(sent)
        rest, found = read([held[len(sent) :], *pieces[number:]])
        assert (sent + rest, found) == whole


@given(pieces=written)
def test_nothing_is_called_that_was_not_offered_and_no_text_is_lost(pieces: list[str]) -> None:
    text = "".join(pieces)
    parser = HermesParser({"other"})

    spoken = [parser.feed(piece, []) for piece in pieces]

    assert not any(calls for _, calls in spoken)
    rest = parser.finish()[0]
    said = "".join(said for said, _ in spoken) + rest
    assert text.startswith(said)
    assert said == text or text[len(said) :].lstrip().startswith("<tool_call>")  # cut off before it could be known


def test_json_too_deep_to_be_read_is_text() -> None:
    text = '<tool_call>{"name": ' + "[" * 200_000 + "</tool_call>"

    assert read([text]) == (text, [])


def test_arguments_stream_before_the_call_is_closed() -> None:
    parser = HermesParser({"f"})

    _, first = parser.feed('<tool_call>{"name": "f", "arguments": {"a": "long te', [])

    assert [delta.arguments for delta in first] == ["", '{"a": "long te']


def test_a_call_cut_off_by_the_limit_is_not_spoken() -> None:
    spoken, calls = read(["<tool_call>", '{"name": "f", '])

    assert (spoken, calls) == ("", [])


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_forced_call_needs_no_tags(size: int) -> None:
    parser = ForcedCallParser({"f"})
    text = '{"name": "f", "arguments": {"a": "b"}}'

    deltas = [delta for start in range(0, len(text), size) for delta in parser.feed(text[start : start + size], [])[1]]
    deltas += parser.finish()[1]

    assert (deltas[0].name, "".join(delta.arguments for delta in deltas)) == ("f", '{"a": "b"}')
    assert parser.num_calls == 1


def test_a_forced_call_cut_off_gets_no_invented_end() -> None:
    parser = ForcedCallParser({"f"})
    parser.feed('{"name": "f", "arguments": {"a": "b', [])

    assert parser.finish() == ("", ())


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_forced_call_of_another_tool_is_text(size: int) -> None:
    parser = ForcedCallParser({"f"})
    text = '{"name": "delete_account", "arguments": {"a": "b"}}'

    fed = [parser.feed(text[start : start + size], []) for start in range(0, len(text), size)]
    fed.append(parser.finish())

    assert "".join(spoken for spoken, _ in fed) == text
    assert not any(calls for _, calls in fed)
    assert parser.num_calls == 0


def test_offered_are_the_prompts_tools_or_the_one_that_is_demanded() -> None:
    tools = (WEATHER, FunctionTool(name="other"))

    assert offered_names(make_prompt(tools=tools)) == {"get_weather", "other"}
    assert offered_names(make_prompt(tools=tools, tool_choice="required")) == {"get_weather", "other"}
    assert offered_names(make_prompt(tools=tools, tool_choice=FunctionChoice(name="other"))) == {"other"}
    assert offered_names(make_prompt(tools=tools, tool_choice=FunctionChoice(name="third"))) == frozenset()
    assert offered_names(make_prompt(tools=tools, tool_choice="none")) == frozenset()
    assert offered_names(make_prompt()) == frozenset()


def test_calls_that_others_found_are_left_out_whole_when_they_were_not_offered() -> None:
    good, bad = (ToolCallDelta(0, "get_weather"), ToolCallDelta(0, None, "{}")), ToolCallDelta(1, "delete_account")
    more = [ToolCallDelta(1, None, "{"), ToolCallDelta(1, "delete_account", "}"), ToolCallDelta(2, None, "{}")]
    offered = OfferedCalls(make_prompt(tools=(WEATHER,)))

    with capture_logs() as logs:
        assert offered.only([*good, bad]) == good
        assert offered.only(more) == ()

    assert [(line["event"], line["log_level"], line["call_index"]) for line in logs] == [
        ("tool_not_offered", "warning", 1)
    ]
    assert "delete_account" not in str(logs)  # the model's own words
    offered.end(is_empty=False)
    with pytest.raises(EngineError, match="not offered"):
        offered.end(is_empty=True)


def test_an_empty_answer_of_no_calls_may_be_empty() -> None:
    OfferedCalls(make_prompt(tools=(WEATHER,))).end(is_empty=True)


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
        st.sampled_from(
            ["Hm", ".\n\n", ". ", " ", "\n", "<", " <tool", "_call", " a", "b <t", "</", ">", STRANGE, "{"]
        ),
        max_size=12,
    )
)
def test_what_is_sent_ends_where_a_piece_ends(pieces: list[str]) -> None:
    """An answer is gone on with after what was sent: from within a token, the model would not go on as it did."""
    parser, sent = HermesParser(OFFERED), ""
    ends = {"".join(pieces[:number]) for number in range(len(pieces) + 1)}

    for piece in pieces:
        sent += parser.feed(piece, [])[0]
        assert sent in ends

    if "<tool_call>" not in "".join(pieces):
        assert sent + parser.finish()[0] == "".join(pieces)


def test_only_what_may_precede_a_call_waits_for_the_next_piece() -> None:
    parser = HermesParser(OFFERED)

    assert [parser.feed(piece, [])[0] for piece in ("Hm", " so.\n", "And", " <", "b")] == [
        "Hm",
        "",
        " so.\nAnd",
        "",
        " <b",
    ]
