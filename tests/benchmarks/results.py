"""Where the figures of measured runs are kept."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")


def keep(target: str, lines: Sequence[str], *, dry: bool) -> None:
    """Print the lines of Markdown and append them to the results under a heading; `dry` only prints."""
    print("\n".join(lines))
    if dry:
        return
    arguments = f" `{' '.join(sys.argv[1:])}`" if sys.argv[1:] else ""
    heading = f"## {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC: `{target}`{arguments}"
    with RESULTS.open("a") as file:
        file.write("\n".join(["", heading, "", *lines, ""]))
