"""An engine that always says the same: what it will say is written down, how it is cut into chunks is not."""

from collections.abc import Iterable, Sequence
from itertools import cycle

from hypothesis import strategies as st
from msgspec import Struct, structs

from sessions.generation import Chunk, FinishReason, ToolCallDelta, Usage
from tests.sessions.builders import Json


class Call(Struct, frozen=True):
    """A tool call that will be made."""

    name: str
    arguments: str


class Script(Struct, frozen=True):
    """What an answer says: texts, never two in a row, and calls."""

    outputs: tuple[str | Call, ...]
    finish: FinishReason = "stop"

    @property
    def num_tokens(self) -> int:
        """One for each character, and one for each call that begins."""
        return sum(len(out) if isinstance(out, str) else 1 + len(out.arguments) for out in self.outputs)

    @property
    def usage(self) -> Usage:
        return Usage(input_tokens=7, output_tokens=self.num_tokens)

    @property
    def wire(self) -> list[Json]:
        """The outputs as clients are to have them in the end, without ids."""
        return [
            {"text": out} if isinstance(out, str) else {"name": out.name, "arguments": out.arguments}
            for out in self.outputs
        ]


def generate(script: Script, spoken: str = "", *, sizes: Sequence[int] = (1,)) -> list[Chunk]:
    """The answer's chunks after what was spoken; a size above 2 also joins a chunk to the one before it."""
    cuts = cycle(sizes)
    outputs = list(script.outputs)
    if spoken:
        assert isinstance(outputs[0], str)
        assert outputs[0].startswith(spoken), "a prompt with words that were never said"
        outputs[0] = outputs[0][len(spoken) :]
    chunks: list[Chunk] = []
    num_calls = 0
    for output in outputs:
        if isinstance(output, str):
            chunks += [Chunk(piece, len(piece)) for piece in _pieces(output, cuts)]
        else:
            chunks.append(Chunk(num_tokens=1, tool_calls=(ToolCallDelta(num_calls, output.name),)))
            for piece in _pieces(output.arguments, cuts):
                chunks.append(Chunk(num_tokens=len(piece), tool_calls=(ToolCallDelta(num_calls, None, piece),)))
            num_calls += 1
    chunks.append(Chunk(usage=script.usage, finish_reason=script.finish))
    chunks[0] = structs.replace(chunks[0], usage=structs.replace(script.usage, output_tokens=0))
    joined: list[Chunk] = []
    for chunk in chunks:
        if joined and next(cuts) > 2 and not (joined[-1].tool_calls and chunk.text):
            joined[-1] = _join(joined[-1], chunk)
        else:
            joined.append(chunk)
    last = structs.replace(joined[-1], usage=script.usage)
    return [*joined[:-1], last]


def _pieces(text: str, cuts: Iterable[int]) -> list[str]:
    pieces, sizes = list[str](), iter(cuts)
    while text:
        size = next(sizes)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def _join(one: Chunk, other: Chunk) -> Chunk:
    return Chunk(
        one.text + other.text,
        one.num_tokens + other.num_tokens,
        one.tool_calls + other.tool_calls,
        other.usage or one.usage,
        other.finish_reason,
    )


words = st.text("ab \n😀", min_size=1, max_size=8)
calls = st.builds(Call, st.sampled_from(["look", "go"]), st.sampled_from(["", "{}", '{"a":1}', '{"a":"😀"}']))


def _apart(outputs: list[str | Call]) -> tuple[str | Call, ...]:
    pairs = zip(outputs, [None, *outputs], strict=False)
    return tuple(out for out, before in pairs if not (isinstance(out, str) and isinstance(before, str)))


scripts = st.builds(
    Script,
    st.lists(words | calls, max_size=5).map(_apart),
    st.sampled_from(["stop", "stop", "tool_calls", "length", "content_filter"]),
)
cuttings = st.lists(st.integers(1, 4), min_size=1, max_size=5)
