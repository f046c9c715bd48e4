"""The pages of the site in one folder: those of docs/, notebooks among them, of the root, and the generated ones.

Links between pages work on GitHub; here they are rewritten to where the pages lie now, and links to other files of the
repository to their address there.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from deploykit.version import REPOSITORY_URL
from docs.site.cli import cli_pages
from docs.site.errors import error_pages
from docs.site.notebooks import images_of, page_of
from docs.site.python_api import python_pages
from docs.site.support import support_pages

__all__ = ["MOVED", "ROOT", "stage"]

ROOT = Path(__file__).resolve().parents[2]

MOVED = {
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "README.md": "readme.md",
    "benchmarks/README.md": "measurements.md",
    "cpp_plugins/README.md": "native-sources.md",
}
"""Pages outside of docs/ -> their place in the site."""

GENERATED: tuple[Callable[[], dict[str, str]], ...] = (cli_pages, error_pages, python_pages, support_pages)

LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")
FENCE = re.compile(r"(?ms)^( *)(`{3,}|~{3,}).*?^ *\2\s*$")


def stage(folder: Path) -> None:
    """Write every page, and the images, to ``folder``, which does not exist yet."""
    notebooks = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
    places = {**{f"docs/{page}": page for page in _pages()}, **MOVED}
    places |= {f"docs/notebooks/{file.name}": f"notebooks/{file.stem}.md" for file in notebooks}
    for origin, place in places.items():
        file = ROOT / origin
        read = page_of(file) if file in notebooks else file.read_text(encoding="utf-8")
        text = _relinked(read, origin, place, places)
        _write(folder / place, _filled(text, places) if place == "index.md" else text)
    for file in notebooks:
        for name, data in images_of(file).items():
            (folder / "notebooks" / name).write_bytes(data)
    shutil.copytree(ROOT / "docs" / "images", folder / "images")
    for pages in GENERATED:
        for place, text in pages().items():
            _write(folder / place, text)


def _pages() -> list[str]:
    docs = ROOT / "docs"
    found = [page.relative_to(docs).as_posix() for page in sorted(docs.rglob("*.md"))]
    return [page for page in found if not page.startswith("_build/")]


def _filled(text: str, places: dict[str, str]) -> str:
    """The tables of contents, without folders that have no pages yet, with the pages left over in place of ``*``."""
    there = {place.rpartition("/")[0] for place in places.values()}
    text = re.sub(r"(?m)^([\w-]+)/\*\n", lambda found: found[0] if found[1] in there else "", text)
    named = {*text.splitlines(), "index"}
    pages = sorted(place.removesuffix(".md") for place in places.values() if "/" not in place)
    return re.sub(r"(?m)^\*\n", "".join(f"{page}\n" for page in pages if page not in named), text)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def _relinked(text: str, origin: str, place: str, places: dict[str, str]) -> str:
    """A page with its links as they are in the site; blocks of code stay."""
    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [LINK.sub(lambda m: _link(m, origin, place, places), text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(lambda m: _link(m, origin, place, places), text[end:])])


def _link(found: re.Match[str], origin: str, place: str, places: dict[str, str]) -> str:
    target, _, anchor = found[2].partition("#")
    if not target or re.match(r"[a-z]+:", target):
        return found[0]
    path = os.path.normpath(os.path.join(os.path.dirname(origin), target))  # noqa: PTH118, PTH120  (of no file system)
    there = places.get(path) or (path.removeprefix("docs/") if path.startswith("docs/images/") else None)
    if there is None and (ROOT / path).exists():
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{found[1]}{REPOSITORY_URL}/{kind}/main/{path}{found[3]}"
    if there is None:  # a generated page, or a fault that Sphinx reports
        there = path.removeprefix("docs/")
    relative = os.path.relpath(there, os.path.dirname(place) or ".")  # noqa: PTH120
    return f"{found[1]}{relative}{f'#{anchor}' if anchor else ''}{found[3]}"
