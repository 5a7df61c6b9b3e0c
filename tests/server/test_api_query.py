"""Queries, bodies and cursors: what is not exactly right is refused by its name, before anything is looked up."""

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct
from starlette.requests import Request

from persistence.feedback import FeedbackPlace
from server.api.cursor import decode_cursor, encode_cursor
from server.api.query import Limit, Milliseconds, Name, query_of
from sessions.wire_errors import BadEvent


class Query(Struct, frozen=True, forbid_unknown_fields=True):
    limit: Limit = 50
    user: Name | None = None
    rating: Literal["up", "down", "none"] | None = None
    has_errors: bool | None = None
    from_ms: Milliseconds | None = None


class Place(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    at_ms: int
    id: str


def asked(query: str) -> Query:
    request = Request({"type": "http", "query_string": query.encode(), "headers": []})
    return query_of(request, Query)


def test_parameters_become_typed_values() -> None:
    query = asked("limit=200&user=%ED%95%9C%EB%82%98&rating=none&has_errors=true&from_ms=0")

    assert query == Query(limit=200, user="한나", rating="none", has_errors=True, from_ms=0)


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ("limit=0", "integer_below_min_value", "limit"),
        ("limit=201", "integer_above_max_value", "limit"),
        ("limit=", "invalid_type", "limit"),
        ("limit=5.5", "invalid_type", "limit"),
        ("limit=" + "9" * 400, "integer_above_max_value", "limit"),
        ("limit=5&limit=5", "invalid_value", "limit"),
        ("user=", "string_below_min_length", "user"),
        ("user=" + "a" * 256, "string_above_max_length", "user"),
        ("user=a%00b", "invalid_value", "user"),
        ("user=%ff", "invalid_value", "user"),
        ("rating=best", "invalid_value", "rating"),
        ("has_errors=yes", "invalid_type", "has_errors"),
        ("from_ms=-1", "integer_below_min_value", "from_ms"),
        ("from_ms=99999999999999999999", "integer_above_max_value", "from_ms"),
        ("role=admin", "unknown_parameter", "role"),
        ("LIMIT=5", "unknown_parameter", "LIMIT"),
        ("&".join(f"p{n}=1" for n in range(40)), "invalid_value", None),
    ],
)
def test_a_bad_parameter_is_named(query: str, code: str, param: str | None) -> None:
    with pytest.raises(BadEvent) as refused:
        asked(query)

    assert (refused.value.code, refused.value.param) == (code, param)


@given(at_ms=st.integers(0, 10**14), id=st.text(max_size=64))
def test_a_cursor_comes_back_as_the_place_it_was_made_of(at_ms: int, id: str) -> None:
    assert decode_cursor(encode_cursor(Place(at_ms, id), of="sessions"), Place, of="sessions") == Place(at_ms, id)


@given(
    at=st.integers(0, 77),
    letter=st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=. +/\u00e9"),
)
def test_a_cursor_with_any_letter_changed_is_refused(at: int, letter: str) -> None:
    cursor = encode_cursor(Place(1_790_000_000_000, "sess_01K000000000000000000000000"), of="sessions")
    assert len(cursor) == 78  # no multiple of four: its last letter has several spellings
    tampered = cursor[:at] + letter + cursor[at + 1 :]
    if tampered == cursor:
        return

    with pytest.raises(BadEvent) as refused:
        decode_cursor(tampered, Place, of="sessions")

    assert refused.value.param == "after"


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "=",
        "null",
        "AAAA",
        "A" * 100_000,
        "\u202e",
        encode_cursor(Place(1, "a"), of="audit"),
        encode_cursor("a", of="sessions"),
    ],
)
def test_what_never_was_a_cursor_of_this_list_is_refused(cursor: str) -> None:
    with pytest.raises(BadEvent) as refused:
        decode_cursor(cursor, Place, of="sessions")

    assert (refused.value.code, refused.value.param) == ("invalid_value", "after")


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        (2**63, int),
        (-1, int),
        ({"rated_ms": 10**20, "feedback_id": "fb_x"}, FeedbackPlace),
        ({"rated_ms": -1, "feedback_id": "fb_x"}, FeedbackPlace),
    ],
)
def test_a_place_that_no_column_holds_is_refused(place: object, kind: type[object]) -> None:
    """The check of a cursor is no secret: a forged one is a mistake, not an outage."""
    with pytest.raises(BadEvent) as refused:
        decode_cursor(encode_cursor(place, of="sessions"), kind, of="sessions")

    assert refused.value.param == "after"
