"""The support matrix, from the table of tests in tests/support.py."""

from __future__ import annotations

from pathlib import Path

from deploykit.version import REPOSITORY_URL
from tests.support import TABLES, Table, needs_of

__all__ = ["support_pages"]

ROOT = Path(__file__).resolve().parents[2]

SIGNS = {"gpu": "needs a GPU", "tensorrt": "needs a GPU", "data": "with data", "slow": "long"}
"""What a test needs -> what its cell says instead of "yes"."""


def support_pages() -> dict[str, str]:
    """Return the page of the matrix by its place."""
    text = [
        "# Support matrix",
        "Every cell links to the test that stands behind it; the table is generated from the test suite.",
        "| cell | |\n|---|---|\n| yes | a test of the default suite |\n| long | a test that runs with `SLOW=1` |\n"
        "| with data | a test that needs trained checkpoints beside the repository |\n"
        "| needs a GPU | a test that has to run on an NVIDIA GPU; it is skipped elsewhere |\n"
        "| – | no test is about this pair; it may work |",
    ]
    for table in TABLES:
        text += [f"## {table.title}", _table(table)]
    text.append(
        "The runtime knows kinds of output, not families: a test of a kind is about every family that gives it."
    )
    return {"reference/support.md": "\n\n".join(text) + "\n"}


def _table(table: Table) -> str:
    lines = [f"| | {' | '.join(table.columns)} |", f"|---|{'---|' * len(table.columns)}"]
    for row, cells in table.rows.items():
        shown = [_cell(cells[column]) if column in cells else "–" for column in table.columns]
        lines.append(f"| {row} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _cell(node: str) -> str:
    needs = needs_of(ROOT, node) or set()
    said = next((text for marker, text in SIGNS.items() if marker in needs), "yes")
    return f"[{said}]({REPOSITORY_URL}/blob/main/{node.partition('::')[0]})"
