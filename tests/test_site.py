"""The site: every page is in a table of contents, links and images lead somewhere, and it builds without a warning."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs.site.stage import MOVED, stage
from tests.doc_blocks import blocks_of
from tests.test_docs import ROOT

INDEX = ROOT / "docs" / "index.md"
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The staged pages, generated ones among them."""
    folder = tmp_path_factory.mktemp("site") / "source"
    stage(folder)
    return folder


def listed(page: Path, folder: Path) -> set[str]:
    """The pages that the tables of contents of a page name, and of those below it."""
    found: set[str] = set()
    for block in blocks_of(page.read_text()):
        for line in block.text.splitlines() if block.language == "{toctree}" else ():
            if line and not line.startswith(":"):
                names = [page.parent / f"{line}.md"] if "*" not in line else sorted(page.parent.glob(f"{line}.md"))
                for file in names:
                    name = file.relative_to(folder).as_posix()
                    if name not in found:
                        found |= {name} | listed(file, folder)
    return found


def test_every_page_is_in_a_table_of_contents_and_nothing_else(pages: Path) -> None:
    there = {page.relative_to(pages).as_posix() for page in pages.rglob("*.md")} - {"index.md"}
    assert listed(pages / "index.md", pages) == there


def slugs(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"(?ms)^( *)(`{3,}|~{3,}).*?^ *\2\s*$", "", text)
    titles = re.findall(r"(?m)^#+ +(.+?)\s*$", text)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "") for title in titles]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in plain}


def test_links_anchors_and_images_lead_somewhere(pages: Path) -> None:
    wrong = []
    for page in sorted(pages.rglob("*.md")):
        text = re.sub(r"(?ms)^( *)(`{3,}|~{3,}).*?^ *\2\s*$", "", page.read_text())
        for target in LINK.findall(text):
            place, _, anchor = target.partition("#")
            if not re.match(r"[a-z]+:", target):
                file = (page.parent / place).resolve() if place else page
                if not file.is_file() or (anchor and anchor not in slugs(file.read_text())):
                    wrong.append(f"{page.relative_to(pages)}: {target}")
    assert not wrong


def test_links_out_of_the_pages_are_addresses_of_the_repository(pages: Path) -> None:
    readme = (pages / "readme.md").read_text()
    assert "(contributing.md)" in readme
    assert "(export.md)" in readme
    assert "(images/markers.jpg)" in readme
    assert all((ROOT / page).is_file() for page in MOVED)


QUERY = "fp16\u68c0\u67e5\u70b9\u7684AP, export_onnx \u56fe"
PIECES = ["fp16", "\u68c0\u67e5", "\u67e5\u70b9", "\u70b9\u7684", "AP", "export_onnx", "\u56fe"]


def test_the_search_indexes_chinese_by_pairs_of_characters() -> None:
    search = pytest.importorskip("docs.site.search", reason="no Sphinx").SearchEnglishAndChinese({})
    assert search.split(QUERY) == PIECES
    assert search.split("exports of models") == ["exports", "of", "models"]


@pytest.mark.skipif(not shutil.which("node"), reason="no JavaScript runtime")
def test_the_browser_splits_a_query_as_the_index_was() -> None:
    search = pytest.importorskip("docs.site.search", reason="no Sphinx").SearchEnglishAndChinese
    program = f"{search.js_splitter_code}\nconsole.log(JSON.stringify(splitQuery({json.dumps(QUERY)})))"
    done = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == PIECES


@pytest.mark.slow
def test_the_site_builds_offline_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("furo")
    command = [sys.executable, "-m", "docs.site", "--out", str(tmp_path)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not done.stderr
    html = tmp_path / "html"
    index = (html / "index.html").read_text()
    assert not re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="https?://', index)
    assert "Open a model and everything around it" in (html / "reference" / "python" / "run.html").read_text()
    assert "max-det" in (html / "reference" / "cli" / "predict.html").read_text()
    assert (html / "llms.txt").read_text().count("\n- [") > 50
    assert 'lang="zh-CN"' in (html / "zh" / "start.html").read_text()
    assert 'lang="en"' in (html / "start.html").read_text()
    for page in html.rglob("*.html"):
        for image in re.findall(r'<img[^>]*src="([^"]+)"', page.read_text()):
            assert image.startswith("data:") or (page.parent / image).resolve().is_file(), f"{page}: {image}"
