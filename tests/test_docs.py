"""What the documents say is true: files named exist, modules are named, commands parse."""

from __future__ import annotations

import ast
import hashlib
import re
import shlex
from pathlib import Path

import pytest

from deploykit.cli import COMMANDS, command_parser
from deploykit.version import __version__

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "cpp_plugins" / "README.md"])
SOURCES = [f for part in ("deploykit", "models", "export", "runtime") for f in (ROOT / part).rglob("*.py")]


MADE = {"cpp_plugins/lib"}
"""Folders that a command makes."""


def modules() -> list[Path]:
    """Every module once: rglob does not follow the links, except where it does."""
    return sorted({f.resolve() for f in SOURCES})


def files_of_tree(text: str, folder: Path) -> set[Path]:
    """The Python files that a tree names, each in its folder.

    A line that begins with ``name/`` is a folder in the one above it that is indented less; files are named on its
    line, or below it, further in.
    """
    found = set()
    above: list[tuple[int, Path]] = [(-1, folder)]
    for line in filter(str.strip, text.splitlines()):
        words = line.strip()
        indent = len(line) - len(line.lstrip())
        while above[-1][0] >= indent:
            above.pop()
        if part := re.match(r"(\w+)/(?=\s|$)", words):
            above.append((indent, above[-1][1] / part[1]))
        found |= {above[-1][1] / name for name in re.findall(r"(?<![\w./])\w+\.py\b", words)}
    return found


def test_a_tree_has_each_file_in_its_folder() -> None:
    text = """
        a/               what it is, not b/c.py
          one.py two.py  two files
          b/             three.py, and one.py
                         more.py
          four.py
        d/
          one.py
    """
    told = {str(file) for file in files_of_tree(text, Path("x"))}
    assert told == {f"x/{n}.py" for n in ("a/one", "a/two", "a/b/three", "a/b/one", "a/b/more", "a/four", "d/one")}


TREE = ROOT / "ARCHITECTURE.md"


def test_the_tree_names_every_module_in_its_folder_and_nothing_else() -> None:
    told = files_of_tree(TREE.read_text().split("## The tree")[1], ROOT)
    there = {file for file in modules() if file.name != "__init__.py"}
    benchmarks = set((ROOT / "benchmarks").glob("*.py"))
    assert not there - told
    assert not told - there - benchmarks


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
            command_parser(words).parse_args(words)


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


def version_fits(changelog: str, version: str) -> bool:
    """Whether a version is the newest one of a changelog, or newer than that and told under Unreleased."""
    titles = re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    released = [tuple(map(int, title.split("."))) for title in titles if title != "Unreleased"]
    if released != sorted(set(released), reverse=True) or "Unreleased" in titles[1:]:
        return False
    ours = tuple(map(int, version.split(".")))
    return ours == released[0] if released and ours <= released[0] else titles[:1] == ["Unreleased"]


@pytest.mark.parametrize(
    ("titles", "version", "fits"),
    [
        (("Unreleased",), "0.1.0", True),
        (("Unreleased", "0.1.0"), "0.1.0", True),
        (("Unreleased", "0.1.0"), "0.2.0", True),
        (("0.2.0", "0.1.0"), "0.2.0", True),
        (("Unreleased", "0.10.0", "0.9.0"), "0.10.0", True),
        (("Unreleased", "0.2.0", "0.1.0"), "0.1.0", False),
        (("Unreleased", "0.2.0"), "0.1.9", False),
        (("0.1.0",), "0.2.0", False),
        (("0.1.0", "Unreleased"), "0.1.0", False),
        (("Unreleased", "0.1.0", "0.2.0"), "0.2.0", False),
        ((), "0.1.0", False),
    ],
)
def test_a_version_and_a_changelog_fit(titles: tuple[str, ...], version: str, fits: bool) -> None:
    assert version_fits("\n".join(f"## [{title}]\n\n- words\n" for title in titles), version) is fits


def test_the_version_fits_the_changelog() -> None:
    assert version_fits((ROOT / "CHANGELOG.md").read_text(), __version__)
