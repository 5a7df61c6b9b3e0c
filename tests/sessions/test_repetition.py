"""A repetition by example: what an engine says again is swallowed, however it is cut; what differs is noticed."""

import pytest

from sessions.generation import Chunk, FinishReason, ToolCallDelta
from sessions.items import FunctionCallItem, Item, MessageItem, OutputText
from sessions.repetition import AnswerDiffers, Repetition

LOOK = FunctionCallItem("item_1", "call_1", "look", '{"at":"sky"}')
SAY = MessageItem("item_2", "assistant", (OutputText("So, "),))
GO = FunctionCallItem("item_3", "call_2", "go", '{"to"')


def of_call(index: int, arguments: str = "", name: str | None = None, finish: FinishReason | None = None) -> Chunk:
    return Chunk("", 1, (ToolCallDelta(index, name, arguments),), finish_reason=finish)


def take(items: list[Item], *chunks: Chunk) -> tuple[Repetition, list[Chunk]]:
    """The repetition after these chunks, and what of each was new."""
    repetition = Repetition(items)
    return repetition, [repetition.take(chunk) for chunk in chunks]


NOTHING = Chunk()


@pytest.mark.parametrize("cuts", [['{"to"'], ['{"', 'to"'], ["", '{"to"']])
def test_a_call_that_clients_have_is_swallowed_however_it_is_cut(cuts: list[str]) -> None:
    """P4."""
    chunks = [of_call(0, cuts[0], "go"), *(of_call(0, cut) for cut in cuts[1:])]

    repetition, new = take([GO], *chunks)

    assert new == [NOTHING] * len(cuts)
    assert repetition.is_over
    assert repetition.call_index == 0


def test_a_chunk_that_goes_beyond_what_clients_have_is_new_from_there_on() -> None:
    repetition, new = take([GO], of_call(0, '{"', "go"), of_call(0, 'to":"sea"'))

    assert new == [NOTHING, Chunk(tool_calls=(ToolCallDelta(0, None, ':"sea"'),))]
    assert (repetition.is_over, repetition.num_tokens) == (True, 2)


def test_calls_and_texts_between_them_are_swallowed_in_their_order() -> None:
    items: list[Item] = [LOOK, SAY, GO]
    both = Chunk("So, ", 4, (ToolCallDelta(1, "go", '{"to":'),))

    repetition, new = take(items, of_call(0, '{"at":"sky"}', "look"), both)

    assert new == [NOTHING, Chunk(tool_calls=(ToolCallDelta(1, None, ":"),))]
    assert (repetition.is_over, repetition.call_index, repetition.num_tokens) == (True, 1, 5)


def test_it_is_not_over_before_the_last_item_begins_again() -> None:
    repetition, _ = take([FunctionCallItem("item_1", "call_1", "look", "")])
    assert not repetition.is_over

    repetition.take(of_call(0, "", "look"))

    assert repetition.is_over


def test_what_follows_in_the_very_chunk_that_ends_it_is_new() -> None:
    again = ToolCallDelta(0, "go", '{"to"')
    more = ToolCallDelta(1, "look", "{}")

    _, new = take([GO], Chunk("", 3, (again, more), finish_reason="stop"))

    assert new == [Chunk("", 0, (more,), finish_reason="stop")]


@pytest.mark.parametrize(
    "chunks",
    [
        [of_call(0, "", "come")],
        [of_call(0, '{"at"', "go")],
        [of_call(0, "", "go"), of_call(1, "", "go")],
        [Chunk("Well, ", 1)],
        [of_call(0, '{"to', "go", finish="stop")],
        [Chunk(finish_reason="length")],
        [of_call(0, '{"to', "go"), Chunk("Well, ", 1)],
    ],
    ids=["name", "arguments", "index", "text", "end", "nothing", "text within"],
)
def test_other_output_than_clients_have_is_noticed(chunks: list[Chunk]) -> None:
    """P4: an answer is continued as it was or not at all."""
    with pytest.raises(AnswerDiffers):
        take([GO], *chunks)


@pytest.mark.parametrize(
    "chunks",
    [
        [of_call(0, '{"at":"sky"}', "look"), of_call(1, "", "go")],
        [of_call(0, '{"at":"sky"} ', "look")],
        [of_call(0, '{"at":"sky"}', "look"), Chunk("So, what")],
        [of_call(0, '{"at":"sky"}', "look"), Chunk("So, "), Chunk("what")],
        [of_call(0, '{"at":"sky"}', "look"), Chunk("So"), of_call(1, "", "go")],
        [of_call(0, '{"at":', "look"), Chunk("So, ")],
        [of_call(0, '{"at":', "look"), of_call(1, "", "go")],
    ],
    ids=["no text", "longer call", "longer text", "text later", "shorter text", "shorter call", "next call"],
)
def test_an_item_that_ended_must_end_again_where_it_did(chunks: list[Chunk]) -> None:
    with pytest.raises(AnswerDiffers):
        take([LOOK, SAY, GO], *chunks)
