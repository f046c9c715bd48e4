"""What the line of an error says."""

from __future__ import annotations

import re


def told(line: str) -> str:
    """What stands between the program's name and the way to the explanation of the exit code."""
    found = re.fullmatch(r"deploykit: (.*) \[deploykit help \d+\]", line)
    assert found, line
    return found[1]
