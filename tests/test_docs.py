"""The documents are true: files that they name exist, every module is in the tree, commands parse."""

from __future__ import annotations

import ast
import hashlib
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploykit.cli import COMMANDS, _parser

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "cpp_plugins" / "README.md"])
SOURCES = [f for part in ("deploykit", "models", "export", "runtime") for f in (ROOT / part).rglob("*.py")]


MADE = {"cpp_plugins/lib"}
"""Folders that a command makes."""


def modules() -> list[Path]:
    """Every module once: rglob does not follow the links, except where it does."""
    return sorted({f.resolve() for f in SOURCES})


def tree() -> Iterator[str]:
    """The paths of the Python files that ARCHITECTURE.md's tree names: a file belongs to the folder of its line, or to
    the one that its line is indented under."""
    folders: list[tuple[int, str]] = []
    for line in (ROOT / "ARCHITECTURE.md").read_text().split("## The tree")[1].splitlines():
        if not line.startswith("    "):
            continue
        indent, text = len(line) - len(line.lstrip()), line.lstrip()
        folders = [(depth, name) for depth, name in folders if depth < indent]
        if folder := re.match(r"(\w+)/ ", text):
            folders.append((indent, folder[1]))
        for name in re.findall(r"(?<![\w/])\w+\.py\b", text):
            yield "/".join((*(name for _, name in folders), name))


def test_the_tree_names_every_module_under_its_folder_once_and_nothing_else() -> None:
    named = Counter(tree())
    assert not [path for path, times in named.items() if times > 1]
    found = {str(f.relative_to(ROOT)) for f in [*modules(), *(ROOT / "benchmarks").glob("*.py")]}
    found = {path for path in found if not path.endswith("__init__.py")}
    assert set(named) == found, (sorted(found - set(named)), sorted(set(named) - found))


def test_two_files_of_one_name_are_told_apart() -> None:
    assert {"export/nms/graph.py", "runtime/evaluate/dense.py", "export/parity/dense.py"} <= set(tree())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    parts = "deploykit|models|export|runtime|cpp_plugins|tests|benchmarks|scripts|docs"
    named = re.findall(rf"`((?:{parts})/[\w./-]+)`", page.read_text())
    assert not [path for path in named if not (ROOT / path).exists() and path not in MADE]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def commands(page: Path) -> list[str]:
    lines = [line.strip().removeprefix("$ ") for line in page.read_text().splitlines() if re.match(r"\s{4}", line)]
    return [re.split(r"\s+#", line)[0] for line in lines if line.startswith("deploykit ")]


def test_there_are_commands_to_check() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 10


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_parse(page: Path) -> None:
    for command in commands(page):
        words = shlex.split(command)[1:]
        assert words[0] in COMMANDS, command
        if "..." not in words and "FILE" not in words:
            _parser(words).parse_args(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_examples_are_python(page: Path) -> None:
    for block in re.findall(r"(?m)(?:^ {4}(?:import deploykit)$\n(?:^(?: {4}.*)?$\n?)*)", page.read_text()):
        ast.parse("\n".join(line[4:] for line in block.splitlines()))


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert not [name for name in COMMANDS if f"deploykit {name}" not in readme and f"`{name} " not in readme]


def test_the_image_is_the_one_in_the_notice() -> None:
    image = (ROOT / "deploykit" / "assets" / "apollo11_crew.jpg").read_bytes()
    notice = (ROOT / "NOTICE").read_text()
    assert hashlib.sha256(image).hexdigest() in notice
    assert f"{len(image):,} bytes" in notice


def test_the_version_is_in_the_changelog_or_unreleased() -> None:
    assert re.search(r"^## \[(Unreleased|\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
