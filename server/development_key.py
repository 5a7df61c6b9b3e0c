"""The key that signs tokens in development: made once, kept beside the data, readable by its owner alone."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

KEY_BYTES = 32


def kept_key(path: Path) -> str:
    """The key in that file, made at the first call, whole or not at all also when several processes start at once.

    `OSError` when it cannot be read or written, `ValueError` when the file holds no whole key.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        _make(path)
    path.chmod(0o600)
    key = path.read_text().strip()
    if len(key) < 2 * KEY_BYTES:
        raise ValueError("no whole key")
    return key


def _make(path: Path) -> None:
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(KEY_BYTES))
        file.flush()
        os.fsync(file.fileno())
    try:
        with suppress(FileExistsError):  # another process was first: its key holds
            os.link(draft, path)
    finally:
        draft.unlink()
