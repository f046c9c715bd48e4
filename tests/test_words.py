"""Words that the field has better ones for do not come back: in code, messages, documents and file names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

WORDS = {
    r"pictures?": "image",
    r"(un)?prov(e|es|ed|en|ing)|proofs?": "verify, verified, verification",
    r"(could|to) be had|at hand": "available",
    r"RawRows": "RawDetections",
    r"Tensor as Dense": "DenseOutput",
    r"to_engine|trt_refusal|source_predictor|nms_export": "the module's name of today",
    r"aloud": "with a note",
    r"hoped for": "expected",
}
"""Pattern of whole words (letters of either size) -> what to write."""

ANY = re.compile(rf"(?i)(?<![a-z])({'|'.join(WORDS)})(?![a-z])")

NAMES = {"CHANGELOG.md", "test_words.py"}
"""Files that may hold them: the changelog has old names."""

SUFFIXES = {".py", ".md", ".toml", ".txt", ".cpp", ".h", ".cu", ".cuh", ".in", ".yaml", ".js", ".css", ".html", ""}
FOLDERS = (
    "deploykit",
    "models",
    "export",
    "runtime",
    "cpp_plugins",
    "tests",
    "benchmarks",
    "docs",
    "examples",
    "scripts",
)


def sources() -> Iterator[Path]:
    """Every text file of the project, by its path from the root; not through the links."""
    yield from (file.relative_to(ROOT) for file in sorted(ROOT.iterdir()) if file.is_file())
    for top in FOLDERS:
        for folder, folders, names in os.walk(ROOT / top):
            folders[:] = sorted(name for name in folders if name not in ("__pycache__", "_build", "lib"))
            yield from (Path(folder, name).relative_to(ROOT) for name in sorted(names))


def found(text: str) -> Iterator[str]:
    """Each forbidden word with its line; a word of code is a word of the text: ``raw_pictures`` has one."""
    if not ANY.search(text):
        return
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, instead in WORDS.items():
            for match in re.finditer(rf"(?i)(?<![a-z])({pattern})(?![a-z])", line):
                yield f"{number}: {match[0]!r}, write {instead}: {line.strip()[:80]}"


def test_the_words_do_not_come_back() -> None:
    wrong = []
    for file in sources():
        parts = file.as_posix()
        if file.suffix not in SUFFIXES or file.name in NAMES:
            continue
        wrong += [f"{parts}:{line}" for line in found((ROOT / file).read_text())]
        wrong += [f"{parts}: its name, {line}" for line in found(file.stem)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("one picture a second", 1),
        ("def raw_pictures(): # Proved", 2),
        ("improved; approve; a prover; handy; picturesque", 0),
        ("no library could be had; none was at hand", 2),
    ],
)
def test_a_word_is_found_in_text_and_in_names(text: str, count: int) -> None:
    assert len(list(found(text))) == count
