"""Places of connections: bounded by user and by address, and given back. P7."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.admission import CALLS_BURST, CALLS_PER_S, Admission, TooManyCalls, TooManyConnections


def test_a_user_holds_so_many_connections_and_no_more() -> None:
    admission = Admission(max_per_user=2, max_per_address=0)
    admission.admit(user_id="ann", address="::1")
    admission.admit(user_id="ann", address="::2")

    with pytest.raises(TooManyConnections, match="This user has 2 connections"):
        admission.admit(user_id="ann", address="::3")
    admission.admit(user_id="bob", address="::1")
    admission.release(user_id="ann", address="::1")
    admission.admit(user_id="ann", address="::3")


def test_an_address_holds_so_many_connections_and_no_more() -> None:
    admission = Admission(max_per_user=0, max_per_address=1)
    admission.admit(user_id="ann", address="::1")

    with pytest.raises(TooManyConnections, match="This address has 1 connections"):
        admission.admit(user_id="bob", address="::1")
    admission.admit(user_id="ann", address="::2")


def test_a_refusal_takes_no_place() -> None:
    admission = Admission(max_per_user=2, max_per_address=1)
    admission.admit(user_id="ann", address="::1")
    for _ in range(5):
        with pytest.raises(TooManyConnections):
            admission.admit(user_id="ann", address="::1")

    admission.admit(user_id="ann", address="::2")


def test_a_user_and_an_address_of_one_name_are_two() -> None:
    admission = Admission(max_per_user=1, max_per_address=1)
    admission.admit(user_id="x", address="y")

    admission.admit(user_id="y", address="x")


names = st.sampled_from(["a", "b"])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), names, names), max_size=30))
def test_any_coming_and_going_keeps_the_bounds(steps: list[tuple[bool, str, str]]) -> None:
    admission = Admission(max_per_user=2, max_per_address=3)
    held: list[tuple[str, str]] = []
    for comes, user, address in steps:
        num_user = sum(u == user for u, _ in held)
        num_address = sum(a == address for _, a in held)
        if comes and num_user < 2 and num_address < 3:
            admission.admit(user_id=user, address=address)
            held.append((user, address))
        elif comes:
            with pytest.raises(TooManyConnections):
                admission.admit(user_id=user, address=address)
        elif (user, address) in held:
            admission.release(user_id=user, address=address)
            held.remove((user, address))
    for user, address in held:
        admission.release(user_id=user, address=address)

    for name in ("a", "b"):
        admission.admit(user_id=name, address=name)
        admission.admit(user_id=name, address=name)


def test_a_user_calls_so_fast_and_no_faster_and_others_do_not_feel_it() -> None:
    admission = Admission(max_per_user=0, max_per_address=0)
    for _ in range(CALLS_BURST):
        admission.call(user_id="ann", now_s=100.0)

    for _ in range(3):
        with pytest.raises(TooManyCalls) as refusal:
            admission.call(user_id="ann", now_s=100.0)
    admission.call(user_id="bob", now_s=100.0)
    admission.call(user_id="ann", now_s=100.001 + refusal.value.retry_after_s)

    assert refusal.value.retry_after_s == pytest.approx(1 / CALLS_PER_S)
