"""How an answer came to be is kept with its prediction: what the engine told, the prompt's version, who spoke."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.structs import replace

from sessions.config import SessionConfig
from sessions.generation import Chunk, Origin
from sessions.limits import MAX_PROMPT_BYTES, DialogueLimits
from sessions.records import Trace
from tests.sessions.builders import NOW_MS, Talk, make_chunk

ORIGIN = Origin(
    prompt="<|user|>Hi<|assistant|>",
    sampling=Raw(b'{"temperature":0.7,"max_tokens":64}'),
    taken_ms=NOW_MS + 4,
    first_token_ms=NOW_MS + 30,
)


def from_(origin: Origin, chunk: Chunk) -> Chunk:
    return replace(chunk, origin=origin)


def only_trace(talk: Talk) -> Trace:
    trace = talk.predictions[-1].trace
    assert trace is not None
    return trace


def begun(origin: Origin = ORIGIN, *, limits: DialogueLimits | None = None, **config: object) -> tuple[Talk, str]:
    """An answer that has one token."""
    talk = Talk(config=SessionConfig(model="demo", **config), limits=limits)  # type: ignore[arg-type]
    talk.add("Hi")
    response_id = talk.ask()
    talk.now_ms += 31
    talk.advance(response_id, from_(origin, make_chunk("Hel")))
    return talk, response_id


def test_all_that_the_engine_told_is_in_the_record() -> None:
    talk, response_id = begun(instructions="Be kind.")
    talk.advance(response_id, make_chunk("lo"))
    talk.now_ms += 50

    talk.advance(response_id, from_(replace(ORIGIN, last_token_ms=NOW_MS + 77), make_chunk("!", finish="stop")))

    assert only_trace(talk) == Trace(
        prompt="<|user|>Hi<|assistant|>",
        sampling=ORIGIN.sampling,
        queued_ms=NOW_MS + 4,
        engine_first_token_ms=NOW_MS + 30,
        last_token_ms=NOW_MS + 77,
        prompt_version=f"sha256:{hashlib.sha256(b'Be kind.').hexdigest()[:12]}",
        persona="kiosk",
    )
    assert talk.predictions[-1].first_token_ms == NOW_MS + 31


def test_what_is_told_goes_to_the_record_and_to_no_client() -> None:
    talk, response_id = begun()

    talk.advance(response_id, from_(ORIGIN, make_chunk("lo", finish="stop")))

    assert not any(b"<|user|>" in event or b"sampling" in event for event in talk.journal)


def test_an_answer_that_was_stopped_was_being_decoded_until_then() -> None:
    talk, response_id = begun()
    talk.now_ms += 100

    talk.send("response.cancel", response_id=response_id)

    trace = only_trace(talk)
    assert (trace.prompt, trace.engine_first_token_ms) == (ORIGIN.prompt, NOW_MS + 30)
    assert trace.last_token_ms == NOW_MS + 131


def test_an_answer_that_failed_keeps_what_was_told() -> None:
    talk, response_id = begun()

    talk.fail(response_id)

    assert only_trace(talk).prompt == ORIGIN.prompt


def test_an_answer_without_a_word_from_its_engine_says_who_was_to_speak() -> None:
    talk = Talk(config=SessionConfig(model="demo"))
    response_id = talk.ask()

    talk.fail(response_id)

    trace = only_trace(talk)
    assert (trace.prompt, bytes(trace.sampling), trace.persona) == (None, b"{}", "kiosk")
    assert (trace.queued_ms, trace.engine_first_token_ms, trace.last_token_ms) == (None, None, None)
    assert trace.prompt_version is not None


@pytest.mark.parametrize("letter", ["x", "é", "안", "🙂"])
def test_a_prompt_of_exactly_the_bound_is_kept_and_none_beyond(letter: str) -> None:
    fitting = letter * (MAX_PROMPT_BYTES // len(letter.encode()))
    fitting += "x" * (MAX_PROMPT_BYTES - len(fitting.encode()))

    for prompt, kept in ((fitting, fitting), (fitting + "x", None)):
        talk, response_id = begun(replace(ORIGIN, prompt=prompt))
        talk.advance(response_id, make_chunk("lo", finish="stop"))

        trace = only_trace(talk)
        assert trace.prompt == kept
        assert trace.sampling == ORIGIN.sampling


@given(prompt=st.text(st.characters(), max_size=12), max_bytes=st.integers(min_value=0, max_value=40))
def test_the_bound_counts_bytes(prompt: str, max_bytes: int) -> None:
    talk, response_id = begun(replace(ORIGIN, prompt=prompt), limits=DialogueLimits(max_prompt_bytes=max_bytes))
    talk.advance(response_id, make_chunk("lo", finish="stop"))

    assert (only_trace(talk).prompt is None) == (len(prompt.encode(errors="surrogatepass")) > max_bytes)


def test_where_no_prompts_are_kept_the_rest_is() -> None:
    talk, response_id = begun(limits=DialogueLimits(max_prompt_bytes=0))

    talk.advance(response_id, from_(ORIGIN, make_chunk("lo", finish="stop")))

    assert only_trace(talk).prompt is None
    assert only_trace(talk).sampling == ORIGIN.sampling


@pytest.mark.parametrize(
    ("session_prompt", "version"),
    [
        (b'{"id":"pmpt_1","version":"7","variables":{"a":{"b":1}}}', "7"),
        (b'{"id":"pmpt_1","version":"' + b"v" * 100 + b'"}', "v" * 64),
        (b'{"id":"pmpt_1","version":""}', None),
        (b'{"id":"pmpt_1","version":7}', None),
        (b'{"id":"pmpt_1"}', None),
        (b'"pmpt_1"', None),
        (b"null", None),
    ],
)
def test_the_clients_own_name_for_its_prompt_is_its_version(session_prompt: bytes, version: str | None) -> None:
    talk, response_id = begun(instructions="Be kind.", prompt=Raw(session_prompt))
    talk.advance(response_id, make_chunk("lo", finish="stop"))

    digest = f"sha256:{hashlib.sha256(b'Be kind.').hexdigest()[:12]}"
    assert only_trace(talk).prompt_version == (version or digest)


@pytest.mark.parametrize(
    ("response", "version"),
    [
        ({}, "7"),
        ({"instructions": "Be kind."}, "7"),
        ({"instructions": "Be brief."}, f"sha256:{hashlib.sha256(b'Be brief.').hexdigest()[:12]}"),
        ({"instructions": "Be brief.", "prompt": {"id": "pmpt_2", "version": "3"}}, "3"),
    ],
)
def test_a_responses_own_instructions_have_a_version_of_their_own(response: dict[str, object], version: str) -> None:
    config = SessionConfig(model="demo", instructions="Be kind.", prompt=Raw(b'{"id":"pmpt_1","version":"7"}'))
    talk = Talk(config=config)

    talk.answer(make_chunk("Hello", finish="stop"), **response)

    assert only_trace(talk).prompt_version == version


def test_a_takeover_knows_the_prompts_version_and_what_its_own_engine_tells() -> None:
    """P4: the answer is gone on with by another node, after the session's prompt has changed."""
    talk, response_id = begun(prompt=Raw(b'{"version":"7"}'))
    talk.send("session.update", session={"type": "realtime", "prompt": {"version": "8"}})

    [prompt] = talk.crash()
    again = replace(ORIGIN, prompt="<|user|>Hi<|assistant|>Hel", taken_ms=NOW_MS + 500, first_token_ms=NOW_MS + 520)
    assert prompt.spoken == "Hel"
    talk.advance(response_id, from_(again, make_chunk("lo", num_tokens=1, usage=None)))
    talk.advance(response_id, from_(again, make_chunk("!", finish="stop")))

    trace = only_trace(talk)
    assert trace.prompt_version == "7"
    assert (trace.prompt, trace.queued_ms) == ("<|user|>Hi<|assistant|>Hel", NOW_MS + 500)


def test_a_takeover_that_ends_without_a_word_says_so() -> None:
    talk, response_id = begun()
    talk.crash()

    talk.fail(response_id)

    assert only_trace(talk).prompt is None
    assert only_trace(talk).last_token_ms is not None
