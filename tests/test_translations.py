"""Chinese pages are no older than their English ones, and say the same: blocks, headings, names, links."""

from __future__ import annotations

import io
import os
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.site.translations import digest_of, english_of, mark, origin_of, translated
from tests.doc_blocks import Block, blocks_of
from tests.test_docs import ROOT

DOCS = ROOT / "docs"
HASH_COMMENTS = ("bash", "yaml", "toml", "ini", "dockerfile")


def without_comments(block: Block) -> str:
    """The text of a block that no translation may change."""
    if block.language == "python":
        lines = block.text.splitlines()
        for token in tokenize.generate_tokens(io.StringIO(block.text).readline):
            if token.type == tokenize.COMMENT:
                lines[token.start[0] - 1] = lines[token.start[0] - 1][: token.start[1]]
    elif block.language == "cpp":
        lines = re.sub(r"(?m)(?:^|(?<=\s))//.*$", "", block.text).splitlines()
    elif block.language in HASH_COMMENTS:
        lines = re.sub(r"(?m)(?:^|(?<=\s))#.*$", "", block.text).splitlines()
    elif block.language.startswith("{"):  # a directive: an image's description is translated
        lines = [line for line in block.text.splitlines() if not line.startswith(":alt:")]
    else:
        lines = block.text.splitlines()
    return "\n".join(line.rstrip() for line in lines).strip()


def prose_of(text: str) -> str:
    return re.sub(r"(?ms)^( *)(`{3,}|~{3,}).*?^ *\2\s*$", "", text)


def links_of(page: Path, docs: Path) -> set[str]:
    """The pages that a page links to, in English where they have two languages; addresses as they are."""
    found = set()
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page.read_text(encoding="utf-8"))):
        place = target.partition("#")[0]
        if re.match(r"[a-z]+:", target):
            found.add(target)
        elif place:
            path = os.path.relpath(os.path.normpath(page.parent / place), docs)
            found.add(path.removeprefix("zh/"))
    return found


def differences(chinese: Path, english: Path, docs: Path) -> Iterator[str]:
    """In what a translation says something else than its English page."""
    ours, theirs = chinese.read_text(encoding="utf-8"), english.read_text(encoding="utf-8")
    pairs = [
        [(b.language.replace("../", ""), b.marks, without_comments(b)) for b in blocks_of(text)]
        for text in (ours, theirs)
    ]
    if len(pairs[0]) != len(pairs[1]):
        yield f"it has {len(pairs[0])} blocks of code, the English page {len(pairs[1])}"
    for number, (mine, other) in enumerate(zip(*pairs, strict=False), 1):
        if mine != other:
            yield f"block {number} differs by more than comments: {mine} instead of {other}"
    for what, pattern in (("headings", r"(?m)^(#+) "), ("rows of tables, items", r"(?m)^ *(\||\*|-|\d+\.) ")):
        counts = [re.findall(pattern, prose_of(text)) for text in (ours, theirs)]
        if counts[0] != counts[1]:
            yield f"its {what} are not those of the English page: {len(counts[0])}, expected {len(counts[1])}"
    names = [set(re.findall(r"`([^`\n]+)`", prose_of(text))) for text in (ours, theirs)]
    if names[0] != names[1]:
        yield f"names in backquotes differ: {sorted(names[0] ^ names[1])}"
    links = [links_of(page, docs) for page in (chinese, english)]
    itself = english.relative_to(docs).as_posix()
    if links[0] - {itself} != links[1] - {itself}:
        yield f"links differ: {sorted((links[0] ^ links[1]) - {itself})}"


def faults(docs: Path) -> list[str]:
    """Everything that is wrong with the translations of a folder of pages."""
    wanted = [english.relative_to(docs).as_posix() for english in translated(docs)]
    found = [
        f"docs/zh/{page} is missing: translate docs/{page}" for page in wanted if not (docs / "zh" / page).is_file()
    ]
    for chinese in sorted((docs / "zh").rglob("*.md")):
        if chinese == docs / "zh" / "index.md":  # written for itself
            continue
        english = english_of(chinese)
        name, origin = (f"docs/{page.relative_to(docs).as_posix()}" for page in (chinese, english))
        if not english.is_file():
            found.append(f"{name} is a translation of {origin}, which does not exist: remove or move it")
            continue
        try:
            told = origin_of(chinese)
        except ValueError as e:
            found.append(str(e))
            continue
        if told != (origin, digest_of(english)):
            found.append(
                f"{name} is older than {origin}: translate what changed (git log -p {origin}), then run "
                f"python -m docs.site.translations {name}"
            )
        found += [f"{name}: {what}" for what in differences(chinese, english, docs)]
        found += [f"{name}: {what}" for what in stale_links(chinese, docs)]
    return found


def stale_links(page: Path, docs: Path) -> Iterator[str]:
    """Links to English pages that have a translation, except the one to its own."""
    for target in re.findall(r"\]\(([^)\s#]+)", prose_of(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path = Path(os.path.normpath(page.parent / target))
        inside = path.is_relative_to(docs) and not path.is_relative_to(docs / "zh")
        if inside and path != english_of(page) and (docs / "zh" / path.relative_to(docs)).is_file():
            yield f"it links to {target}, which has a translation"


def test_the_translations_are_no_older_than_the_english_pages() -> None:
    wrong = faults(DOCS)
    assert not wrong, "\n".join(wrong)


ENGLISH = "# A\n\nSee [b](b.md), `x`.\n\n```bash\nls -l  # list\n```\n\n```python\nx = '# no'  # yes\n```\n"
CHINESE = """# A

[English](../../guides/a.md)

[b](b.md) `x`

```bash
ls -l  # zh
```

```python
x = '# no'  # zh
```
"""


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    docs = tmp_path / "docs"
    for folder in ("guides", "zh/guides"):
        (docs / folder).mkdir(parents=True)
    texts = {"start": ("# S\n", "# S\n"), "guides/a": (ENGLISH, CHINESE), "guides/b": ("# B\n", "# B\n")}
    for name, (english, chinese) in texts.items():
        (docs / f"{name}.md").write_text(english)
        (docs / "zh" / f"{name}.md").write_text(chinese)
        mark(docs / "zh" / f"{name}.md")
    return docs


def test_marked_pages_are_fine_and_marking_again_changes_nothing(pages: Path) -> None:
    before = (pages / "zh" / "guides" / "a.md").read_bytes()
    assert faults(pages) == []
    mark(pages / "zh" / "guides" / "a.md")
    assert (pages / "zh" / "guides" / "a.md").read_bytes() == before


def test_a_changed_english_page_makes_its_translation_old(pages: Path) -> None:
    with (pages / "guides" / "a.md").open("a") as file:
        file.write("\nMore.\n")
    (wrong,) = faults(pages)
    assert wrong.startswith("docs/zh/guides/a.md is older than docs/guides/a.md: ")
    assert wrong.endswith("python -m docs.site.translations docs/zh/guides/a.md")
    mark(pages / "zh" / "guides" / "a.md")
    assert not faults(pages)


def test_a_guide_without_a_translation_and_one_without_its_guide_are_named(pages: Path) -> None:
    (pages / "guides" / "c.md").write_text("# C\n")
    (pages / "guides" / "b.md").unlink()
    first, second = faults(pages)
    assert first == "docs/zh/guides/c.md is missing: translate docs/guides/c.md"
    assert second.startswith("docs/zh/guides/b.md is a translation of docs/guides/b.md, which does not exist")


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ("ls -l", "ls -a", "block 1 differs by more than comments"),
        ("'# no'", "'# yes'", "block 2 differs by more than comments"),
        ("```bash\nls -l  # zh\n```\n", "", "it has 1 blocks of code, the English page 2"),
        ("`x`", "`y`", "names in backquotes differ: ['x', 'y']"),
        ("](b.md)", "](../../guides/b.md)", "it links to ../../guides/b.md, which has a translation"),
        ("](b.md)", "](a.md)", "links differ: ['guides/b.md']"),
        ("# A", "## A", "its headings are not those of the English page"),
        ("`x`", "`x`\n\n* y", "its rows of tables, items are not those"),
        ("<!-- docs/guides/a.md", "<!-- docs/guides/b.md", "is older than docs/guides/a.md"),
        ("<!-- docs/guides/a.md", "<!-- docs", "the first line has to be <!-- docs/PAGE.md DIGEST -->"),
    ],
)
def test_a_translation_that_says_something_else_is_found(pages: Path, old: str, new: str, wrong: str) -> None:
    page = pages / "zh" / "guides" / "a.md"
    assert old in page.read_text()
    page.write_text(page.read_text().replace(old, new, 1))
    assert any(wrong in fault for fault in faults(pages)), faults(pages)
