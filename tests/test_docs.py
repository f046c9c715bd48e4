"""What the documents say is true: files named exist, modules are named, blocks parse and those marked run."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploykit.cli import COMMANDS
from deploykit.version import __version__
from tests.doc_blocks import Block, blocks_of, commands_of, indented_blocks, problems

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts),
        *(ROOT / "cpp_plugins").rglob("*.md"),
        *(ROOT / "benchmarks").rglob("*.md"),
    ]
)
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
    beside = (
        file
        for part in ("docs", "examples", "scripts")
        for file in (ROOT / part).rglob("*.py")
        if "_build" not in file.parts
    )
    there = {file for file in (*modules(), *beside) if file.name != "__init__.py"}
    benchmarks = set((ROOT / "benchmarks").glob("*.py"))
    missing, unknown = (
        sorted(str(file.relative_to(ROOT)) for file in files) for files in (there - told, told - there - benchmarks)
    )
    assert not missing, "the tree in ARCHITECTURE.md lacks them"
    assert not unknown, "the tree in ARCHITECTURE.md names them"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    parts = "deploykit|models|export|runtime|cpp_plugins|tests|benchmarks|examples|scripts|docs"
    named = re.findall(rf"`((?:{parts})/[\w./-]+)`", page.read_text())
    assert not [path for path in named if not (ROOT / path).exists() and path not in MADE]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            path = os.path.normpath(page.parent / target)
            made = path.startswith(
                (str(ROOT / "docs" / "errors"), str(ROOT / "docs" / "reference"))
            )  # tests/test_site.py
            assert made or Path(path).exists(), f"{page.name} links to {target}"


def test_a_page_is_read_as_blocks() -> None:
    page = (
        "- a\n\n      more of it\n\nText:\n\n    indented\n\n<!-- run -->\n```python\nx = 1\n```\n\n```text\n$ y\n```\n"
    )
    assert indented_blocks(page) == [7]
    assert blocks_of(page) == [Block(10, "python", "x = 1", ("run",)), Block(14, "text", "$ y")]


def test_the_commands_of_a_block_are_found() -> None:
    text = "A=1 deploykit \\\n  models  # a comment\ncd b && make test > log 2>&1\necho 'a  b' | jq ."
    assert commands_of(text)[0] == ["deploykit", "models"]
    assert commands_of(text)[-2:] == [["echo", "a  b"], ["jq", "."]]
    assert commands_of(text)[2][:2] == ["make", "test"]


@pytest.mark.parametrize(
    ("block", "wrong"),
    [
        ("```\nx\n```", "the language is ''"),
        ("```bash\ndeploykit exprt a.pt\n```", "no such command"),
        ("```bash\ndeploykit models --unheard-of\n```", "unknown option --unheard-of"),
        ("```bash\nnode x.js\n```", "an unknown program"),
        ("```bash\nmake cake\n```", "no such target"),
        ("```bash\npython benchmarks/none.py\n```", "no such file"),
        ("```text\ndeploykit models\n```", "begins with the command"),
        ("```python\nx = (\n```", "SyntaxError"),
        ("```python\nfrom deploykit import unheard_of\n```", "unheard_of"),
        ("```python\nimport deploykit\ndeploykit.unheard_of\n```", "unheard_of"),
        ("```python\nimport deploykit\ndeploykit.load('a.onnx', config=1)\n```", "no option config"),
        ("```python\nprint(model)\n```", "model is not defined"),
        ("```json\n{'a': 1}\n```", "JSONDecodeError"),
        ('<!-- spec -->\n```json\n{"task": "dream", "output": {}}\n```', "SpecError"),
        ("```toml\na = \n```", "TOMLDecodeError"),
        ("```yaml\na: [\n```", "ParserError"),
    ],
)
def test_a_wrong_block_is_found(block: str, wrong: str) -> None:
    (found,) = problems(block + "\n")
    assert wrong in found


@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")
def test_a_wrong_block_of_cpp_is_found() -> None:
    assert problems("```cpp\nint main() { return }\n```\n")
    assert not problems("```cpp\nint main() { return 0; }\n```\n")


def test_there_are_blocks_to_check() -> None:
    blocks = [block for page in PAGES for block in blocks_of(page.read_text())]
    assert sum(len(commands_of(block.text)) for block in blocks if block.language == "bash") > 50
    assert sum(block.language == "python" for block in blocks) > 8


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_blocks_of_a_page_are_sound(page: Path) -> None:
    assert not problems(page.read_text())


@pytest.fixture(scope="session")
def folder_for_examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where blocks marked ``run`` are executed: model.pt, model.onnx, people.jpg, images/ with it, and deploykit."""
    import deploykit
    from tests.narrow import few_layers, write_checkpoint

    folder = tmp_path_factory.mktemp("examples")
    write_checkpoint(folder / "model.pt", few_layers(num_keypoints=3))
    deploykit.export_onnx(folder / "model.pt", img=64)
    (folder / "images").mkdir()
    for name in ("people.jpg", "images/people.jpg"):
        shutil.copy(ROOT / "deploykit" / "assets" / "apollo11_crew.jpg", folder / name)
    (folder / "bin").mkdir()
    program = folder / "bin" / "deploykit"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m deploykit "$@"\n')
    program.chmod(0o755)
    return folder


TRANSLATED = ROOT / "docs" / "zh"
"""Its blocks are those of the English pages, which run (tests/test_translations.py)."""

RUN = [
    page
    for page in PAGES
    if not page.is_relative_to(TRANSLATED) and any("run" in block.marks for block in blocks_of(page.read_text()))
]


LONG = ("guides/pose.md", "explanations/milliseconds.md", "models/crossformer.md")
"""Pages whose blocks take longest; the first steps (start.md) and the guides of Python and of images always run."""


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.slow if str(p).endswith(LONG) else ()) for p in RUN],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_the_blocks_that_say_so_run(page: Path, folder_for_examples: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(folder_for_examples, tmp_path / "folder")
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    for block in (block for block in blocks_of(page.read_text()) if "run" in block.marks):
        words = {"bash": ["bash", "-euc"], "python": [sys.executable, "-c"]}[block.language]
        done = subprocess.run(
            [*words, block.text], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{page.name}:{block.line}: {done.stderr[-800:]}"


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
