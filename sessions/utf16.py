"""Lengths and cuts in UTF-16 code units, which is how JavaScript, and so the wire, counts characters."""


def num_units(text: str) -> int:
    """How many UTF-16 code units the text has."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2


def clip(text: str, end: int) -> str:
    """The text's first `end` code units; a character that they would cut in two is left out."""
    if text.isascii():
        return text[:end]
    units = text.encode("utf-16-le")[: 2 * end]
    return units.decode("utf-16-le", "ignore")
