"""Personal data is found and covered, whole or in any pieces, and nothing else is touched."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import persistence.masked_text
from persistence.masked_text import MAX_WAIT_CHARS, MaskedText
from persistence.masking import BULLET, REACH, Span, mask, mask_prompt_text, spans
from sessions.utf16 import num_units

PERSONAL = [
    "kim.minsu@example.com",
    "o'neil+news@mail.example.co.uk",
    "jörg@bücher.example",
    "kim%40example.com",
    "010-1234-5678",
    "010 1234 5678",
    "010.1234.5678",
    "010 - 1234 - 5678",
    "01012345678",
    "０１０－１２３４－５６７８",
    "+82 10-1234-5678",
    "+821012345678",
    "+82-(0)10-1234-5678",
    "0082 10 1234 5678",
    "02-123-4567",
    "02) 312-4567",
    "031-123-4567",
    "(415) 555-2671",
    "415.555.2671",
    "4155552671",
    "1-415-555-2671",
    "+1 415 555 2671",
    "020 7946 0958",
    "07700 900123",
    "+44 20 7946 0958",
    "06 12 34 56 78",
    "+33 6 12 34 56 78",
    "0151 23456789",
    "030 123456",
    "+49 151 23456789",
    "090-1234-5678",
    "+81 90-1234-5678",
    "138 0013 8000",
    "13800138000",
    "98765 43210",
    "+34 612 345 678",
    "4111 1111 1111 1111",
    "4111-1111-1111-1111",
    "4111111111111111",
    "3782 822463 10005",
    "DE89 3704 0044 0532 0130 00",
    "DE89370400440532013000",
    "GB82 WEST 1234 5698 7654 32",
    "192.168.10.20",
    "2001:db8::8a2e:370:7334",
    "2001:0db8:85a3:0000:0000:8a2e:0370:7334",
    "900101-1234567",
    "201231-3234567",
    "123-45-6789",
    "11-12-123456-12",
    "11010519491231002X",
    "11999919491231003X",
    "119999194912310080",
    "AB 12 34 56 C",
    "12345678Z",
    "RSSMRA85T10A562S",
]

ORDINARY = [
    "2024년 11월 23일 오후 3시 45분에 만나요. 커피는 4,500원이고 세 잔이면 13,500원입니다.",
    "In 1999, 2000 and 2001 it grew by 3.14159265358979 percent, from $1,299.00 to $1,234,567.89.",
    "2026-11-23 07:50:18, 2026-11-23T07:50:18.123456Z, 23.11.2026 09:15, 1/2/2024, 10:20:30",
    "1999 2000 2001 2002 2003, 2020-2021-2022, pages 100-200, rooms 1 2 3 4 5 6 7 8 9 10 11 12",
    "Meta-Llama-3.1-70B-Instruct, gpt-4o-2024-08-06, Qwen2.5-0.5B, gpt-realtime, v1.2.3.4, CUDA 12.8",
    "sess_01KAQ3V5Z9X8Y7W6V5T4S3R2Q1 item_01234567890123456789012345 fb_abcdefghijklmnopqrstuvwx23",
    "550e8400-e29b-41d4-a716-446655440000 01234567-0123-4567-8901-012345678901",
    "1763884218000 1763884218 0.0123456789 1.000.000.000 9000000000원 3,000,000원 12.345.678",
    "std::vector, dead::beef, http://localhost:8000/v1, 127.0.0.1, @user, item@latest, a@b",
    "제3조 제1항에 따라 2025. 3. 1.부터 100명에게 1인당 50,000원씩 지급합니다. 24/7 연중무휴, 5대 2로 이겼다.",
    '{"temperature":0.7,"top_p":0.95,"max_tokens":4096,"seed":1234567,"id":"call_8a7f"}',
]

# Pieces of what people write, so that many of the texts hold something and much of it is nearly something.
_WORDS = st.sampled_from(
    [*PERSONAL, *ORDINARY, "call ", "번호는", "입니다. ", " ", ", ", "\n", "(", "+", "-", "@", "0", "😀", "a.b"]
)
_TEXTS = st.lists(_WORDS | st.text(max_size=6), max_size=8).map("".join)


def masked_in_pieces(text: str, cuts: Sequence[int], *, is_late: bool = False) -> str:
    """The text, masked as it comes, and given out as it comes or at its end."""
    masked, num_taken, out = MaskedText(is_cut=False), 0, ""
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        masked.add(text[start:end])
        if not is_late:
            out += masked.take(num_taken, masked.num_settled)
            num_taken = masked.num_settled
    masked.end()
    return out + masked.take(num_taken, masked.num_settled)


class TestWhatIsFound:
    @pytest.mark.parametrize("datum", PERSONAL)
    @pytest.mark.parametrize(
        "around", ["{}", "It is {}.", "제 것은 {}입니다", "번호:{}, 그리고", '{{"value":"{}","n":2}}', "a\\n{}\\n"]
    )
    def test_personal_data_is_covered_wherever_it_stands(self, datum: str, around: str) -> None:
        assert mask(around.format(datum)) == around.format(BULLET * num_units(datum))

    @pytest.mark.parametrize("text", ORDINARY)
    def test_ordinary_text_stays_as_it_is(self, text: str) -> None:
        assert mask(text) == text

    @pytest.mark.parametrize(
        "text",
        [
            "my number is 010-1234",
            "my number is 010-1234-",
            "카드는 4111 1111 11",
            "카드는 4111 1111 11 ",
            "제 번호는 900101-1",
            "call +82 10 123",
            "call +82 10 123-",
        ],
    )
    def test_a_number_that_the_text_breaks_off_in_is_covered_as_far_as_it_was_said(self, text: str) -> None:
        covered = mask(text)

        assert not any(char.isdigit() for char in covered)
        assert num_units(covered) == num_units(text)

    @pytest.mark.parametrize(
        "said", ["j.smith@gma", "j.smith@", "j.smith@gmail.", "kim%40exa", "jörg@bücher", "kim@163"]
    )
    @pytest.mark.parametrize("before", ["", "mail ", "메일은", '{"to":"', "a\\n"])
    def test_an_address_that_the_text_breaks_off_in_is_covered_as_far_as_it_was_said(
        self, before: str, said: str
    ) -> None:
        assert mask(before + said) == before + BULLET * len(said)

    @pytest.mark.parametrize(
        "text", ["a@b", "hello @user", "@", "npm i express@4.18", "they met @ noon", "me@home now"]
    )
    def test_a_sign_at_the_end_of_a_text_makes_no_address(self, text: str) -> None:
        assert mask(text) == text

    @pytest.mark.parametrize("end", ["<|im_end|>\n", "</s>", "<end_of_turn>", "\nUser: "])
    @pytest.mark.parametrize("said", ["010-1234-56", "4111 1111 11", "j.smith@gma"])
    def test_an_answer_in_a_prompt_may_have_been_stopped_before_any_mark_or_line(self, said: str, end: str) -> None:
        assert mask_prompt_text(f"mail, call: {said}{end}ok") == f"mail, call: {BULLET * len(said)}{end}ok"

    @pytest.mark.parametrize("text", [f"<|im_start|>user\n{text}<|im_end|>\n" for text in ORDINARY])
    def test_an_ordinary_prompt_stays_as_it_is(self, text: str) -> None:
        assert mask_prompt_text(text) == text

    def test_one_that_stands_right_behind_another_is_covered_too(self) -> None:
        assert mask("010-1234-5678 010-8765-4321,a@b.example;c@d.example") == (
            f"{BULLET * 13} {BULLET * 13},{BULLET * 11};{BULLET * 11}"
        )


class TestWhatHoldsForEveryText:
    @given(_TEXTS)
    @settings(max_examples=150, deadline=None)
    def test_lengths_stay_and_what_is_masked_is_masked_for_good(self, text: str) -> None:
        masked = mask(text)

        assert num_units(masked) == num_units(text)
        assert mask(text) == masked
        for char, other in zip(masked.replace(BULLET * 2, BULLET), text, strict=False):
            assert other == char or BULLET in masked
            break

    @given(_TEXTS, st.lists(st.integers(0, 200), max_size=12), st.booleans())
    @settings(max_examples=300, deadline=None)
    def test_any_split_is_masked_like_the_whole(self, text: str, cuts: list[int], is_late: bool) -> None:
        assert masked_in_pieces(text, sorted(min(cut, len(text)) for cut in cuts), is_late=is_late) == mask(text)

    @given(_TEXTS)
    @settings(max_examples=100, deadline=None)
    def test_character_by_character_is_masked_like_the_whole(self, text: str) -> None:
        assert masked_in_pieces(text, range(1, max(1, len(text)))) == mask(text)

    @pytest.mark.parametrize("datum", PERSONAL)
    def test_each_kind_is_masked_alike_character_by_character(self, datum: str) -> None:
        text = f"It is {datum} or {datum.lower()}, {datum}, as I said: {datum}"

        assert masked_in_pieces(text, range(1, len(text))) == mask(text)

    @pytest.mark.parametrize("before", ["id:", "(NINO/", "mail@me/", "DE-"])
    def test_what_begins_in_the_middle_of_a_word_is_masked_alike(self, before: str) -> None:
        text = f"{before}AB 12 34 56 C and more"

        assert mask(text) == f"{before}{BULLET * 13} and more"
        assert masked_in_pieces(text, range(1, len(text))) == mask(text)

    def test_long_texts_and_long_numbers_are_masked_alike_in_pieces(self) -> None:
        chance = random.Random(7)
        alphabet = [*PERSONAL, *ORDINARY, "1 2 " * 300, "0" * 900, "a" * 900, "010-" * 300, " AB 12 CD 34" * 80]
        alphabet += ["k" * 64 + "@" + ".".join(["d" * 63] * 3) + ".example"] * 4
        for _ in range(20):
            text = "".join(chance.choice(alphabet) + chance.choice(["", " ", ". "]) for _ in range(6))
            cuts = sorted(chance.randrange(len(text)) for _ in range(200))

            assert masked_in_pieces(text, cuts) == mask(text)
            assert masked_in_pieces(text, cuts, is_late=True) == mask(text)

    def test_no_more_is_held_back_than_what_may_become_personal_data(self) -> None:
        masked, most = MaskedText(is_cut=False), 0
        for char in "We talk about nothing of note. " * 20 + "1 " * 2000 + "x" * 2000:
            masked.add(char)
            masked.take(masked.num_settled, masked.num_settled)
            most = max(most, masked.num_chars - masked.num_settled)

        assert most <= REACH + MAX_WAIT_CHARS

    def test_ordinary_words_wait_for_the_next_only(self) -> None:
        masked = MaskedText(is_cut=False)
        for word in ["we ", "talk ", "about ", "nothing ", "of ", "note ", "on ", "a ", "sunny ", "day "]:
            masked.add(word)

            assert masked.num_settled == masked.num_chars

    @pytest.mark.parametrize("is_taken", [True, False])
    @pytest.mark.parametrize("word", ["1 ", "12-34 ", "a@b"])
    def test_a_text_of_nothing_else_is_not_searched_at_each_character(
        self, monkeypatch: pytest.MonkeyPatch, word: str, is_taken: bool
    ) -> None:
        """P7: nor all of it, while it cannot be given out."""
        searched: list[int] = []

        def counted(text: str, *, is_end: bool) -> list[Span]:
            searched.append(len(text))
            return spans(text, is_end=is_end)

        monkeypatch.setattr(persistence.masked_text, "spans", counted)
        masked, text = MaskedText(is_cut=False), word * (6000 // len(word))
        for char in text:
            masked.add(char)
            if is_taken:
                masked.take(masked.num_settled, masked.num_settled)

        assert len(searched) <= len(text) / 24
        assert max(searched) <= 2 * REACH + MAX_WAIT_CHARS + 1

    def test_what_is_known_of_a_span_that_breaks_off_is_covered(self) -> None:
        text = "010-1234-5678." + "a" * 390
        masked = MaskedText(is_cut=False)
        masked.add(text)
        assert 0 < masked.num_settled < 13

        masked.break_off()

        assert masked.take(0, len(text)) == BULLET * len(text)
