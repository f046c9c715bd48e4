"""What the documents say is true: files named exist, modules are named, commands parse."""

from __future__ import annotations

import ast
import hashlib
import re
import shlex
from pathlib import Path

import pytest

from deploykit.cli import COMMANDS, _parser

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "cpp_plugins" / "README.md"])
SOURCES = [f for part in ("deploykit", "models", "export", "runtime") for f in (ROOT / part).rglob("*.py")]


def modules() -> list[Path]:
    """Every module once: rglob does not follow the links, except where it does."""
    return sorted({f.resolve() for f in SOURCES})


def test_the_tree_in_the_readme_names_every_module() -> None:
    tree = (ROOT / "README.md").read_text().split("## The tree")[1]
    missing = [f.name for f in modules() if f.name != "__init__.py" and f.name not in tree]
    assert not missing


def test_the_tree_in_the_readme_names_nothing_else() -> None:
    tree = (ROOT / "README.md").read_text().split("## The tree")[1]
    names = {f.name for f in [*modules(), *(ROOT / "benchmarks").glob("*.py")]}
    assert not [name for name in re.findall(r"[\w]+\.py\b", tree) if name not in names]


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
