"""The timeline: order kept under any inserts, and what must be saved is said."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sessions.feedback import Feedback
from sessions.items import InputText, Item, MessageItem
from sessions.store import PlacedItem
from sessions.timeline import Timeline
from tests.sessions.builders import make_placed


def make_item(item_id: str, text: str = "hello") -> Item:
    return MessageItem(item_id, "user", (InputText(text),))


def ids(timeline: Timeline) -> list[str]:
    return [item.id for item in timeline]


def test_an_empty_timeline_has_no_last() -> None:
    timeline = Timeline()

    assert (len(timeline), timeline.last_id(), timeline.get("a"), "a" in timeline) == (0, None, None, False)


def test_items_are_ordered_by_rank_whatever_order_they_are_loaded_in() -> None:
    timeline = Timeline([make_placed("b", 2.0), make_placed("a", -1.0), make_placed("c", 2.5)])

    assert ids(timeline) == ["a", "b", "c"]
    assert timeline.last_id() == "c"
    assert [timeline.previous_id(item_id) for item_id in "abc"] == [None, "a", "b"]


def test_insert_after_the_last_is_append() -> None:
    timeline = Timeline([make_placed("a", 3.0)])

    saved = timeline.insert(make_item("b"), "a")

    assert saved == [PlacedItem(4.0, make_item("b"))]


def test_replace_keeps_the_place() -> None:
    timeline = Timeline([make_placed("a", 1.0), make_placed("b", 2.0)])

    saved = timeline.replace(make_item("a", "new"))

    assert saved == [PlacedItem(1.0, make_item("a", "new"))]
    assert ids(timeline) == ["a", "b"]
    assert timeline.get("a") == make_item("a", "new")


def test_what_is_thought_of_an_item_stays_with_it_until_it_is_removed() -> None:
    timeline = Timeline([make_placed("a", 1.0), make_placed("b", 2.0)])
    feedback = Feedback(rating="down", rated_ms=1)

    saved = timeline.rate("a", feedback)
    timeline.replace(make_item("a", "new"))

    assert saved == [PlacedItem(1.0, make_item("a"), feedback)]
    assert timeline.placed[0] == PlacedItem(1.0, make_item("a", "new"), feedback)
    assert [timeline.feedback(item_id) for item_id in "abc"] == [feedback, None, None]
    timeline.remove("a")
    assert timeline.feedback("a") is None


def test_what_is_thought_of_an_item_stays_when_all_are_numbered_anew() -> None:
    feedback = Feedback(rating="up", rated_ms=1)
    timeline = Timeline([make_placed("a", 1.0), make_placed("b", 2.0)])
    timeline.rate("b", feedback)

    while len(saved := timeline.insert(make_item(f"item_{len(timeline)}"), "a")) == 1:
        pass

    assert [placed.feedback for placed in saved if placed.item.id == "b"] == [feedback]
    assert timeline.feedback("b") == feedback


def test_replacing_what_is_gone_saves_nothing() -> None:
    timeline = Timeline([make_placed("a", 1.0)])
    timeline.remove("a")

    assert timeline.replace(make_item("a")) == []
    assert ids(timeline) == []


def test_an_insert_between_two_moves_no_other_until_the_gap_is_used_up() -> None:
    timeline = Timeline()
    timeline.append(make_item("first"))
    timeline.append(make_item("last"))

    names = [f"n{number}" for number in range(60)]
    saves = [timeline.insert(make_item(name), after) for after, name in zip(["first", *names], names, strict=False)]

    num_renumberings = sum(len(saved) > 1 for saved in saves)
    assert num_renumberings == 1, "a float's precision lasts for some fifty halvings"
    assert next(number for number, saved in enumerate(saves) if len(saved) > 1) >= 50
    assert ids(timeline) == ["first", *names, "last"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["append", "insert", "remove", "replace"]), st.integers(0, 90)), max_size=90))
def test_any_sequence_of_changes_leaves_the_order_of_a_list_and_the_store_the_same(
    changes: list[tuple[str, int]],
) -> None:
    timeline, model, store = Timeline(), list[str](), dict[str, PlacedItem]()

    for number, (change, where) in enumerate(changes):
        item = make_item(f"i{number}")
        # Mostly at the same place, so that gaps are used up.
        index = where % (len(model) + 1) if where < 30 else min(1, len(model))
        match change:
            case "append":
                saved = timeline.append(item)
                model.append(item.id)
            case "insert":
                saved = timeline.insert(item, model[index - 1] if index else None)
                model.insert(index, item.id)
            case "remove" if model:
                gone = model.pop(index % len(model))
                timeline.remove(gone)
                del store[gone]
                saved = []
            case "replace" if model:
                saved = timeline.replace(make_item(model[index % len(model)], f"text {number}"))
            case _:
                saved = []
        store |= {placed.item.id: placed for placed in saved}

        assert ids(timeline) == model
        assert len(timeline) == len(model)
        assert list(Timeline(store.values())) == list(timeline)
        assert timeline.last_id() == (model[-1] if model else None)
        assert [timeline.previous_id(item_id) for item_id in model] == [None, *model][: len(model)]
