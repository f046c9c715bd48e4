"""``python -m docs.site.translations docs/zh/PAGE.md ...``: mark pages as translated from the English pages of today.

The first line of a translation is ``<!-- docs/PAGE.md DIGEST -->``: its English page, and the first 16 digits of that
page's SHA-256 when it was translated. tests/test_translations.py compares.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from pathlib import Path

from docs.site.stage import ROOT

__all__ = ["ZH", "digest_of", "english_of", "first_line", "mark", "origin_of", "translated"]

ZH = ROOT / "docs" / "zh"


def translated(docs: Path) -> list[Path]:
    """The English pages that have to have a translation: the start page and the guides."""
    return [docs / "start.md", *sorted((docs / "guides").glob("*.md"))]


def english_of(page: Path) -> Path:
    """The English page beside a page of docs/zh."""
    parts = list(page.parts)
    del parts[len(parts) - 1 - parts[::-1].index("zh")]
    return Path(*parts)


def digest_of(page: Path) -> str:
    """The first 16 digits of the SHA-256 of a page."""
    return hashlib.sha256(page.read_bytes()).hexdigest()[:16]


def origin_of(page: Path) -> tuple[str, str]:
    """The English page and the digest in the first line of a translation; ValueError where there are none."""
    line = page.read_text(encoding="utf-8").partition("\n")[0]
    found = re.fullmatch(r"<!-- (docs/\S+\.md) ([0-9a-f]{16}) -->", line)
    if not found:
        raise ValueError(f"{page}: the first line has to be <!-- docs/PAGE.md DIGEST -->, found {line[:60]!r}")
    return found[1], found[2]


def first_line(page: Path) -> str:
    """The first line that a translation has to have today."""
    english = english_of(page)
    return f"<!-- docs/{english.relative_to(_docs_of(english)).as_posix()} {digest_of(english)} -->"


def mark(page: Path) -> None:
    """Write the first line of a translation anew, or add it."""
    text = page.read_text(encoding="utf-8")
    text = text.partition("\n")[2] if text.startswith("<!-- docs/") else text
    page.write_text(f"{first_line(page)}\n{text}", encoding="utf-8")


def _docs_of(page: Path) -> Path:
    return next(folder for folder in page.parents if folder.name == "docs")


def main() -> None:
    """Mark the pages of the command line."""
    parser = argparse.ArgumentParser(prog="python -m docs.site.translations", description=__doc__)
    parser.add_argument("pages", nargs="+", type=Path, metavar="docs/zh/PAGE.md")
    for page in parser.parse_args().pages:
        mark(page.resolve())


if __name__ == "__main__":
    main()
