"""One text masked as it comes, piece by piece, exactly as it would be masked whole: what may yet become personal data is held back."""

from typing import Final

from persistence.masking import REACH, Span, begun, cover, plain, settled, spans

# At most so much more than must be is held back, so that a text of nothing but numbers is not searched again at each of them.
MAX_WAIT_CHARS: Final = 64
_MARKS_A_CHAR: Final = 8
# What personal data is looked for by: where there is none of it, a search costs nothing.
_MARKS: Final = "0123456789@%:"


class MaskedText:
    """The pieces of one text. Places are counted in characters from where the first piece begins.

    `is_cut`: the text had begun before the first piece, and that is not known: what its end may belong to is covered.
    """

    def __init__(self, *, is_cut: bool) -> None:
        self.num_chars = 0
        self.num_settled = 0
        self._is_cut = is_cut
        # What is held of the text begins at `_begin`: what is not given out yet, and what it depends on before it.
        self._begin = 0
        self._text = ""
        self._plain = ""
        self._found: list[Span] = []

    def add(self, piece: str) -> None:
        """The text goes on."""
        self.num_chars += len(piece)
        self._text += piece
        self._plain += plain(piece)
        if self._is_cut:
            self._find_beginning()
        if not self._is_cut:
            place = self._begin + settled(self._plain)
            if place > self.num_settled and place - self.num_settled >= self._num_worth_a_search():
                self._settle(place, is_end=False)

    def end(self) -> None:
        """The text is complete: no piece follows."""
        if self._is_cut:
            self._cover_rest(0)
        elif self.num_settled < self.num_chars:
            self._settle(self.num_chars, is_end=True)

    def break_off(self) -> None:
        """What follows is not known: what may be a part of personal data is covered."""
        if not self._is_cut:
            self._settle(self._begin + settled(self._plain), is_end=False)
        self._cover_rest(self.num_settled - self._begin)

    def take(self, start: int, end: int) -> str:
        """The text from one place to another, masked; both are settled, and nothing before them is asked for again."""
        taken = cover(self._text, self._found, start - self._begin, end - self._begin)
        self._forget(end)
        return taken

    def _find_beginning(self) -> None:
        beginning = begun(self._plain)
        self._is_cut = beginning is None
        known = len(self._text) if beginning is None else beginning
        self._text = cover(self._text, [(0, known)])
        self.num_settled = self._begin + known
        if not self._is_cut:
            # As spaces: nothing is found in it, and in what follows as if nothing came before.
            self._plain = " " * known + self._plain[known:]

    def _num_worth_a_search(self) -> int:
        """How many characters more are to be settled before it is looked what they are: the fewer, the less it costs."""
        searched = self._plain[self._searched_from() :]
        return min(MAX_WAIT_CHARS, 1 + sum(map(searched.count, _MARKS)) // _MARKS_A_CHAR)

    def _searched_from(self) -> int:
        """Where in what is held that begins which what is not settled depends on."""
        return max(0, self.num_settled - self._begin - REACH)

    def _settle(self, place: int, *, is_end: bool) -> None:
        if place > self.num_settled:
            known, start = self.num_settled - self._begin, self._searched_from()
            found = [(first + start, last + start) for first, last in spans(self._plain[start:], is_end=is_end)]
            self._found = [
                *((first, min(last, known)) for first, last in self._found if first < known),
                *((max(first, known), last) for first, last in found if last > known),
            ]
            self.num_settled = place

    def _cover_rest(self, start: int) -> None:
        self._found = [span for span in self._found if span[0] < start] + [(start, len(self._text))]
        self.num_settled = self.num_chars

    def _forget(self, end: int) -> None:
        """Keep of what is given out only what the rest depends on."""
        num_chars = end - self._begin - REACH
        if num_chars > REACH:
            self._text, self._plain = self._text[num_chars:], self._plain[num_chars:]
            self._found = [
                (max(0, first - num_chars), last - num_chars) for first, last in self._found if last > num_chars
            ]
            self._begin += num_chars
