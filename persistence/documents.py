"""JSON documents in columns: as they were encoded, or as a JSON string where the database's JSON type refuses them.

MariaDB nests 32 deep, MySQL 100; clients may send more.
"""

import msgspec
from msgspec import Raw


def quote(document: Raw) -> Raw:
    """The document as a JSON string, which every database takes."""
    return Raw(msgspec.json.encode(bytes(document).decode()))


def unquoted(document: str) -> str:
    """The document as it was encoded, whether it was quoted or not: ours are always arrays or objects."""
    return msgspec.json.decode(document, type=str) if document.startswith('"') else document
