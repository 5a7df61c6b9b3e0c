"""Personal data in a text, covered: e-mail addresses, telephone and card numbers, IBANs, IP addresses, national ids. Pure.

What is covered keeps its length in UTF-16 units, a `•` each, so that every range and position in the text stays true. Whether a character
is covered depends on no more than `REACH` characters before and after it.
"""

import re
import string
from collections.abc import Callable, Iterator, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final
from unicodedata import decimal

from stdnum import iban
from stdnum.es import dni, nie
from stdnum.it import codicefiscale

from persistence.personal_numbers import MIN_DIGITS, is_chinese_id, personal_spans

BULLET: Final = "•"
REACH: Final = 400

Span = tuple[int, int]
# What makes personal data in a text unreadable. It may be called in another thread.
Mask = Callable[[str], str]

# Letters with accents are part of names and domains; scripts that put no space between an address and a word are not.
_NAME: Final = "0-9A-Za-zÀ-ÖØ-öø-ɏ"
_NAME_CHARS: Final = "".join(map(chr, range(0x250)))
_NAME_CHARS_ONLY: Final = "".join(re.findall(f"[{_NAME}]", _NAME_CHARS))
_LOCAL_CHARS: Final = _NAME_CHARS_ONLY + "._+'&#-"
_MAX_LOCAL_CHARS: Final = 64
_LATIN: Final = string.ascii_letters
_AT: Final = re.compile(
    rf"(?:@|%40)[{_NAME}-]{{1,63}}(?:\.[{_NAME}-]{{1,63}}){{0,3}}\.[A-Za-zÀ-ÖØ-öø-ɏ][{_NAME}-]{{1,62}}"
)
# An address that the text breaks off in. Of one letter before the sign nobody knows whom it names, and versions have dots.
_MIN_CUT_LOCAL_CHARS: Final = 2
_MAX_CUT_DOMAIN_CHARS: Final = 255
_CUT_AT: Final = re.compile(rf"(?:@|%40)(?![0-9]+\.[0-9])[{_NAME}.-]{{0,{_MAX_CUT_DOMAIN_CHARS}}}\Z")

# Each begins with what it must have, not with what may not stand before it: so the search runs over ordinary text at full speed.
_RIGHT: Final = r"(?![0-9A-Za-z_])"
_RUN: Final = re.compile(rf"[0-9](?:[ ./()\-]{{0,3}}[0-9]){{{MIN_DIGITS - 3},}}")
_UUID: Final = re.compile(r"[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}")
_IPV4: Final = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9A-Za-z_]|\.[0-9])")
_IPV6: Final = re.compile(r"(?:[0-9A-Fa-f]{1,4}:|::)[0-9A-Fa-f:]{2,36}(?![0-9A-Za-z_:])")
_HAS_IPV6: Final = re.compile(r"(?:[0-9A-Fa-f]{1,4}:|::)[0-9A-Fa-f:]{2,36}(?![0-9A-Za-z_:])")
_IBAN: Final = re.compile(r"[A-Za-z]{2}[0-9]{2}(?:[ -]?[0-9A-Za-z]){11,30}")
_IBAN_BEGIN: Final = re.compile(r"(?<![0-9A-Za-z_])(?=[A-Za-z]{2}[0-9]{2})|(?<=\\[nrtbf])(?=[A-Za-z]{2}[0-9]{2})")
_IBAN_GROUP: Final = re.compile(r"[0-9A-Za-z]+")
_NINO: Final = r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]"
_CHECKED: Final = (
    (re.compile(_NINO + _RIGHT), bool),
    (re.compile(rf"[0-9]{{8}}-?[A-Za-z]{_RIGHT}"), dni.is_valid),
    (re.compile(rf"[XYZxyz]-?[0-9]{{7}}-?[A-Za-z]{_RIGHT}"), nie.is_valid),
    (
        re.compile(rf"[A-Za-z]{{6}}[0-9]{{2}}[A-Za-z][0-9]{{2}}[A-Za-z][0-9]{{3}}[A-Za-z]{_RIGHT}"),
        codicefiscale.is_valid,
    ),
    (re.compile(rf"[0-9]{{17}}[Xx]{_RIGHT}"), is_chinese_id),
)
# Digits with a letter before or after them: without any, none of those that have both needs to be looked for.
_IS_MIXED: Final = re.compile(
    r"[0-9](?:(?<=[A-Za-z][0-9])|(?<=[A-Z] [0-9])|(?<=[XYZxyz]-[0-9]))[0-9]|[0-9]{7}-?[A-Za-z]"
)

_TIED: Final = re.compile(r"[0-9A-Za-z_]\Z|[0-9]\.\Z")
_ESCAPE: Final = re.compile(r"\\[nrtbf]")
# In a prompt that is one text: each line, and each mark of the template, may follow an answer that was stopped.
_SAID_IN_PROMPT: Final = re.compile(r"(?=[<\n])")
_NOTHING_TO_FIND: Final = re.compile(r"[^0-9@%]*", re.ASCII)


def unmasked(text: str) -> str:
    """The text as it is."""
    return text


def _plain_table() -> dict[int, str]:
    """Every other way to write a character that is looked for: full width, the digits of other scripts, dashes, spaces."""
    wide = {0xFEE0 + code: chr(code) for code in range(0x21, 0x7F)}
    digits = {code: str(value) for code in range(0x80, 0x10000) if (value := decimal(chr(code), None)) is not None}
    dashes = dict.fromkeys((*range(0x2010, 0x2016), 0x2212, 0x30FC, 0xFE58, 0xFE63), "-")
    spaces = dict.fromkeys((0xA0, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000), " ")
    return wide | digits | dashes | spaces


_PLAIN: Final = _plain_table()
_NOT_PLAIN: Final = re.compile(f"[{''.join(map(chr, _PLAIN))}]")

# What a personal datum is made of; any other character ends it. A space goes on only from what may be a part of a number.
_OPEN_CHARS: Final = _LOCAL_CHARS + "%@()/: "
_NO_DATUM: Final = re.compile(f"[^{re.escape(_OPEN_CHARS)}]")


def mask(text: str) -> str:
    """The text with all personal data in it covered; the same for the same text, and of the same length in UTF-16 units."""
    found = spans(plain(text), is_end=True)
    return cover(text, found) if found else text


def mask_prompt_text(text: str) -> str:
    """As `mask`, of a prompt in which what is said ends at a line's end or a template's mark, perhaps within personal data."""
    return "".join(map(mask, _SAID_IN_PROMPT.split(text)))


def plain(text: str) -> str:
    """The text, character by character, with those that are looked for written in their plainest way."""
    return text if text.isascii() or _NOT_PLAIN.search(text) is None else text.translate(_PLAIN)


def spans(text: str, *, is_end: bool) -> list[Span]:
    """Where personal data stands in a plain text, in order, not overlapping. `is_end`: nothing follows, but may have been meant to."""
    if _NOTHING_TO_FIND.fullmatch(text):
        return []
    found = sorted(_found(text, is_end=is_end))
    if not found or "-" not in text:
        return _merged(found)
    ids = [match.span() for match in _UUID.finditer(text)]
    return _merged([span for span in found if not any(first <= span[0] and span[1] <= last for first, last in ids)])


def cover(text: str, found: Sequence[Span], start: int = 0, end: int | None = None) -> str:
    """`text[start:end]` with those spans of the text covered."""
    end = len(text) if end is None else end
    pieces, at = [], start
    for first, last in found:
        first, last = max(first, at), min(last, end)
        if first < last:
            pieces += [text[at:first], "".join(BULLET if char <= "\uffff" else 2 * BULLET for char in text[first:last])]
            at = last
    return "".join([*pieces, text[at:end]])


def settled(text: str) -> int:
    """Up to where a plain text is masked alike, whatever follows it."""
    position = first = len(text.rstrip(_OPEN_CHARS))
    at, floor = len(text), max(first, len(text) - REACH)
    while (space := text.rfind(" ", floor, at)) >= 0:
        token = text[max(first, text.rfind(" ", first, space) + 1) : space]
        if token and not may_be_number(token):
            position = space + 1
            break
        at = space
    return max(position, len(text) - REACH)


def begun(text: str) -> int | None:
    """Where a plain text begins to be masked alike, whatever came before it; None while it may go on like what it begins with."""
    at = 0
    while at < REACH:
        stop = _NO_DATUM.search(text, at)
        space = text.find(" ", at)
        if stop is not None and (space < 0 or stop.start() < space):
            return stop.start()
        if space < 0:
            break
        if at and space > at and not may_be_number(text[at:space]):
            return at
        at = space + 1
    return REACH if len(text) > REACH else None


def may_be_number(token: str) -> bool:
    """Whether a word may be a part of a number that is written with spaces."""
    return any(char.isdigit() for char in token) or _is_bank(token) or _is_bank(token[len(token.rstrip(_LATIN)) :])


def _is_bank(token: str) -> bool:
    """Whether a word without digits may stand within an IBAN, or a national id, that is written with spaces."""
    return 0 < len(token) <= 4 and not token.islower()


def _found(text: str, *, is_end: bool) -> Iterator[Span]:
    for match in _AT.finditer(text):
        if (start := _local_start(text, match.start())) < match.start():
            yield start, match.end()
    if is_end:
        yield from _cut_address(text)
    for match in _RUN.finditer(text):
        yield from personal_spans(text, *match.span(), is_end=is_end)
    if text.count(".") > 2:
        yield from (match.span() for match in _IPV4.finditer(text) if _is_free(text, match) and _is_ipv4(match[0]))
    if _HAS_IPV6.search(text):
        yield from (match.span() for match in _IPV6.finditer(text) if _is_free(text, match) and _is_ipv6(match[0]))
    if _IS_MIXED.search(text):
        yield from _mixed(text)


def _cut_address(text: str) -> Iterator[Span]:
    cut = _CUT_AT.search(text, max(0, len(text) - _MAX_CUT_DOMAIN_CHARS - len("%40")))
    if cut is not None and _AT.match(text, cut.start()) is None:
        start = _local_start(text, cut.start())
        if start <= cut.start() - _MIN_CUT_LOCAL_CHARS:
            yield start, cut.end()


def _local_start(text: str, end: int) -> int:
    """Where the part of an address begins that ends before its sign."""
    before = text[max(0, end - _MAX_LOCAL_CHARS) : end]
    start = end - len(before) + len(before.rstrip(_LOCAL_CHARS))
    # In a JSON text the letter belongs to the line break before it.
    return start + 1 if _ESCAPE.match(text[max(0, start - 1) : start + 1]) else start


def _mixed(text: str) -> Iterator[Span]:
    """What is made of letters and digits."""
    for begin in _IBAN_BEGIN.finditer(text):
        match = _IBAN.match(text, begin.start())
        if match is not None and (num_chars := _iban_length(match[0])) is not None:
            yield match.start(), match.start() + num_chars
    for pattern, is_valid in _CHECKED:
        yield from (
            match.span() for match in pattern.finditer(text) if _is_free(text, match) and is_valid(match[0].upper())
        )


def _is_free(text: str, match: re.Match[str]) -> bool:
    """Whether what was found is no part of a longer word or number; an escape in a JSON text ends the one before."""
    before = text[max(0, match.start() - 2) : match.start()]
    return _TIED.search(before) is None or _ESCAPE.fullmatch(before) is not None


def _is_ipv4(text: str) -> bool:
    try:
        address = IPv4Address(text)
    except AddressValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


def _is_ipv6(text: str) -> bool:
    """Whether it is an address: `10:30:45` is none, and of `dead::beef` nobody knows."""
    try:
        address = IPv6Address(text)
    except AddressValueError:
        return False
    return any(char.isdigit() for char in text) and text.count(":") > 2 and not address.is_loopback


def _iban_length(text: str) -> int | None:
    """How much of the text is an IBAN; what follows may look like more of it."""
    # ISO 7064: the country and the check digits come last, and 97 leaves 1. Kept as a remainder, so that each end is cheap to try.
    head = int("".join(str(int(char, 36)) for char in text[:4]))
    rest, num_chars = 0, 4
    for group in _IBAN_GROUP.finditer(text, 4):
        if group.start() > 4 and group[0].isalpha() and not _is_bank(group[0]):
            return None
        for char in group[0]:
            value = int(char, 36)
            rest = (rest * (100 if value > 9 else 10) + value) % 97
        num_chars += len(group[0])
        if (
            num_chars >= 15
            and (rest * 1_000_000 + head) % 97 == 1
            and iban.is_valid(text[: group.end()], check_country=False)
        ):
            return group.end()
    return None


def _merged(found: Sequence[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, end in found:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
