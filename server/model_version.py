"""Which model answered, so that ratings and replays can be laid at the right door."""

import hashlib
from pathlib import Path


def model_version(model: str) -> str:
    """A hub name as it is; a folder as a digest of its configuration and its files' names and sizes, 12 hex digits."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.*")):
        digest.update(f"{path.name}:{path.stat().st_size}\n".encode())
    config = folder / "config.json"
    if config.is_file():
        digest.update(config.read_bytes())
    return digest.hexdigest()[:12]
