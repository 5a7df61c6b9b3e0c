"""Which groups of digits in a run of them are somebody's: telephone numbers, payment cards, national ids. Pure.

What a number may look like is told by libphonenumber's data and python-stdnum's check digits; each window of a run is judged by itself,
with a bounded number of cheap tests, so that no text is slow.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import date
from functools import lru_cache
from typing import Final, Literal

import phonenumbers
from msgspec import Struct
from phonenumbers import NumberParseException, PhoneMetadata
from stdnum import luhn
from stdnum.br import cpf
from stdnum.cn import ric
from stdnum.fr import nir
from stdnum.in_ import aadhaar
from stdnum.jp import in_ as my_number
from stdnum.kr import rrn
from stdnum.us import ssn

# Whose national way to write a number is known: elsewhere a number is found where its country is written with it.
REGIONS: Final = ("KR", "US", "GB", "FR", "DE", "NL", "JP", "CN", "IN", "BR", "AU")
MIN_DIGITS: Final = 9

_MAX_DIGITS: Final = 19
_MAX_GROUPS: Final = 7
_MIN_CUT_DIGITS: Final = 7
_MAX_NATIONAL_DIGITS: Final = 13
_MIN_FOREIGN_DIGITS: Final = 8
_MAX_FOREIGN_DIGITS: Final = 15
# A price or a count, but nobody's number.
_ROUND: Final = "0000"
_CARD_SHAPES: Final = frozenset({(4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 3), (4, 4, 4, 1)})
_CARD: Final = re.compile(r"3[04-9]\d{11,13}|35\d{14}|4\d{12}(?:\d{3}){0,2}|5[0-9]\d{14}|(?:2[2-7]|6\d|9\d)\d{14,17}")
_GROUP: Final = re.compile(r"[0-9]+")
_LETTER: Final = re.compile(r"[0-9A-Za-z_]")
_ESCAPE: Final = re.compile(r"\\[nrtbf]")
# What may stand between the groups of a number, and after the last that was said; a full stop ends a sentence.
_CUT: Final = re.compile(r"[ /(\-]{0,3}\Z")


class _Group(Struct, frozen=True):
    """Some digits, and what stands between them and those before."""

    start: int
    end: int
    digits: str
    gap: str


def personal_spans(text: str, start: int, end: int, *, is_end: bool) -> Iterator[tuple[int, int]]:
    """The parts of a run of digit groups, `text[start:end]`, that are somebody's number.

    `is_end`: the text ends where `text` does, so that a number may have been cut off there.
    """
    groups, last = [], start
    for match in _GROUP.finditer(text, start, end):
        groups.append(_Group(match.start(), match.end(), match[0], text[last : match.start()]))
        last = match.end()
    for number, group in enumerate(groups):
        if text[max(0, group.start - 2) : group.start].rstrip("(").endswith("+"):
            if (until := _foreign_end(text, groups[number : number + _MAX_GROUPS], is_end=is_end)) is not None:
                yield text.rfind("+", 0, group.start), until
        elif (until := _national_end(text, groups[number : number + _MAX_GROUPS], is_end=is_end)) is not None:
            yield group.start - (text[group.start - 1 : group.start] == "("), until


def _foreign_end(text: str, groups: Sequence[_Group], *, is_end: bool) -> int | None:
    """Where the number ends that begins with a plus; the longest that is valid, else that is as long as numbers there are."""
    digits, possible, valid = "", None, None
    for group in groups:
        digits += group.digits
        if len(digits) > _MAX_FOREIGN_DIGITS:
            break
        if is_end and len(digits) >= _MIN_CUT_DIGITS and _CUT.match(text, group.end):
            possible = possible or group.end
        elif len(digits) >= _MIN_FOREIGN_DIGITS:
            match _foreign_phone(digits):
                case "valid":
                    valid = group.end
                case "possible":
                    possible = possible or group.end
    return valid or possible


def _national_end(text: str, groups: Sequence[_Group], *, is_end: bool) -> int | None:
    """Where the longest number ends that begins with these groups."""
    digits, found = "", None
    shape: tuple[int, ...] = ()
    for count, group in enumerate(groups, 1):
        digits += group.digits
        shape = (*shape, len(group.digits))
        if len(digits) > _MAX_DIGITS or (group.end < len(text) and _LETTER.match(text, group.end)):
            break
        # The same stands between all groups, but for what follows an area's number.
        is_even = count < 4 or group.gap == groups[2].gap
        if not is_even:
            break
        is_cut = is_end and len(digits) >= _MIN_CUT_DIGITS and _CUT.match(text, group.end) is not None
        if len(digits) < MIN_DIGITS and not is_cut:
            continue
        if count == 1 and (_is_tied(text, group) or _is_fraction(text, group)):
            continue
        is_plain = count < 3 or groups[1].gap == groups[2].gap
        if (is_cut and _begins_number(shape, digits)) or _is_personal(shape, digits, is_plain=is_plain):
            found = group.end
    return found


def _is_tied(text: str, group: _Group) -> bool:
    """Whether digits without a gap belong to a word or an id before them: `item_0101234567`."""
    before = text[max(0, group.start - 2) : group.start]
    if not before or _ESCAPE.fullmatch(before):
        return False
    return _LETTER.match(before[-1]) is not None or (before[-1] == "-" and _LETTER.match(before[0]) is not None)


def _is_fraction(text: str, group: _Group) -> bool:
    """Whether the digits stand before or after a decimal point."""
    before, after = text[max(0, group.start - 2) : group.start], text[group.end : group.end + 2]
    return (before[-1:] == "." and before[:1].isdigit()) or (after[:1] == "." and after[1:].isdigit())


def _is_personal(shape: tuple[int, ...], digits: str, *, is_plain: bool) -> bool:
    """Whether it is a number of any kind; cards and ids have the same between all their groups."""
    if len(digits) < MIN_DIGITS:
        return False
    if _is_phone_shape(shape, digits) and _is_national_phone(digits):
        return True
    return is_plain and (_is_card(shape, digits) or _is_national_id(shape, digits))


def _begins_number(shape: tuple[int, ...], digits: str) -> bool:
    """Whether the text ends within a number: an answer was stopped there, and the rest was not said."""
    if len(shape) < 2:
        return False
    if shape[0] == 6 and len(shape) == 2 and shape[1] <= 7:
        return _is_birthday(digits)
    if digits[0] != "0":
        return shape[:2] == (4, 4) and len(shape) > 2 and digits[0] in "3456"
    is_paired = len(shape) > 3 and shape[0] == 2 and all(length <= 2 for length in shape)
    return digits[1] != "0" and (is_paired or (2 <= shape[0] <= 4 and 3 <= shape[1] <= 4))


def _is_phone_shape(shape: tuple[int, ...], digits: str) -> bool:
    """Whether people write telephone numbers so, and hardly anything else: dates come in twos and a four."""
    if len(shape) == 1:
        return digits[0] == "0" or not digits.endswith(_ROUND)
    if digits[0] == "0":
        is_paired = all(length == 2 for length in shape[1:])
        return 2 <= shape[0] <= 5 and len(shape) <= 5 and (shape[-1] >= 3 or is_paired or shape[1] >= 3)
    return shape in ((3, 3, 4), (1, 3, 3, 4), (3, 7), (3, 4, 4), (5, 5), (4, 3, 3), (3, 3, 3), (2, 5, 4), (2, 4, 4))


@lru_cache(4096)
def _foreign_phone(digits: str) -> Literal["valid", "possible"] | None:
    """Whether it is a number with its country, or at least as long as that country's numbers are."""
    try:
        number = phonenumbers.parse(f"+{digits}")
    except NumberParseException:
        return None
    if phonenumbers.is_valid_number(number):
        return "valid"
    return "possible" if phonenumbers.is_possible_number(number) else None


def _is_national_phone(digits: str) -> bool:
    if digits.startswith("00"):
        return len(digits) <= _MAX_FOREIGN_DIGITS + 2 and _foreign_phone(digits[2:]) == "valid"
    return len(digits) <= _MAX_NATIONAL_DIGITS and _national_pattern().fullmatch(digits) is not None


@lru_cache(1)
def _national_pattern() -> re.Pattern[str]:
    """What numbers look like within the regions, a trunk prefix before them, as libphonenumber has it."""
    found: dict[str, list[str]] = {}
    for region in REGIONS:
        data = PhoneMetadata.metadata_for_region(region)
        assert data is not None
        # Where people write no prefix, there is none; elsewhere a number without one looks like any other.
        prefix = {"US": "1?", "CN": "0?", "IN": "0?", "BR": "0?"}.get(region, "0")
        kinds = (data.mobile, data.fixed_line, data.personal_number, data.voip)
        found.setdefault(prefix, []).extend(
            kind.national_number_pattern for kind in kinds if kind and kind.national_number_pattern
        )
    return re.compile("|".join(f"{prefix}(?:{'|'.join(patterns)})" for prefix, patterns in found.items()))


def _is_card(shape: tuple[int, ...], digits: str) -> bool:
    if len(shape) > 1 and shape not in _CARD_SHAPES:
        return False
    return _CARD.fullmatch(digits) is not None and luhn.is_valid(digits)


def _is_national_id(shape: tuple[int, ...], digits: str) -> bool:
    match shape:
        case (6, 7):
            # Those given since October 2020 have no check digit.
            return _is_birthday(digits) and digits[6] in "12345678"
        case (13,):
            return _is_birthday(digits) and bool(rrn.is_valid(digits))
        case (3, 2, 4):
            return bool(ssn.is_valid(f"{digits[:3]}-{digits[3:5]}-{digits[5:]}"))
        case (2, 2, 6, 2):
            # A Korean driver's licence: 11 to 28 is the region, and no date has such a shape.
            return 11 <= int(digits[:2]) <= 28
        case (3, 3, 3, 2):
            return bool(cpf.is_valid(digits))
        case (4, 4, 4):
            is_years = all(year in ("19", "20") for year in (digits[:2], digits[4:6], digits[8:10]))
            return not is_years and bool(aadhaar.is_valid(digits) or my_number.is_valid(digits))
        case (18,):
            return is_chinese_id(digits)
        case (15,) | (1, 2, 2, 2, 3, 3, 2):
            return bool(nir.is_valid(digits))
        case _:
            return False


def is_chinese_id(number: str) -> bool:
    """Whether it is a Chinese citizen's, by its check digit, birthday and place."""
    try:
        return bool(ric.is_valid(number))
    except KeyError:
        # All but the county is right: of one that it does not know, python-stdnum looks for the name nevertheless.
        return True


def _is_birthday(digits: str) -> bool:
    """Whether the digits begin with a year's last two, a month and a day."""
    try:
        date(2000 + int(digits[:2]), int(digits[2:4]), int(digits[4:6]))
    except ValueError:
        return False
    return True
