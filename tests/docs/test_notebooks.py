"""Notebooks run without an error or a warning, their committed outputs are theirs, and they are pages of the site."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.site.notebooks import images_of, page_of
from tests.doc_blocks import problems
from tests.test_words import found

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

from docs.site.run_notebooks import FOLDER, executed  # noqa: E402  (it imports these)

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LONG = {"2-checkpoint-to-onnx"}  # three exports
RUN = [pytest.param(f, marks=pytest.mark.slow if f.stem in LONG else (), id=f.stem) for f in NOTEBOOKS]


def texts(file: Path) -> list[str]:
    """What a notebook shows, block by block, without its numbers, which differ from machine to machine."""
    return [re.sub(r"-?\d[\d.,]*(e-?\d+)?|\s+", " ", block) for block in page_of(file).split("\n\n")]


@pytest.mark.parametrize("file", RUN)
def test_a_notebook_runs_and_its_committed_outputs_are_its_own(file: Path, tmp_path: Path) -> None:
    again = tmp_path / file.name
    folder = tmp_path / "folder"
    folder.mkdir()
    nbformat.write(executed(file, folder), again)
    assert texts(again) == texts(file), f"python -m docs.site.run_notebooks docs/notebooks/{file.name}"
    assert images_of(again).keys() == images_of(file).keys()


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_a_notebook_is_small_and_says_nothing_of_a_machine(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert file.stat().st_size < 200_000
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert dict(notebook.metadata.language_info) == {"name": "python"}
    assert not any(cell.metadata for cell in notebook.cells)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert not re.findall(r"/(?:home|root|tmp|work|Users)/|site-packages", page_of(file))


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_the_page_of_a_notebook_is_sound(file: Path) -> None:
    page = page_of(file)
    assert page.startswith("# ")
    assert not problems(page)
    assert not list(found(page))


def notebook(folder: Path, *sources: str, outputs: list | None = None) -> Path:
    cells = [nbformat.v4.new_code_cell(source, outputs=outputs or []) for source in sources]
    file = folder / "try.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title"), *cells]), file)
    return file


def test_a_page_has_code_text_and_images(tmp_path: Path) -> None:
    data = {"image/png": "AAEC", "text/plain": "<Image>"}
    outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="a\n```\n"),
        nbformat.v4.new_output("execute_result", data={"text/html": "<b>", "text/plain": "7"}),
        nbformat.v4.new_output("display_data", data=data),
    ]
    file = notebook(tmp_path, "x = 1", outputs=outputs)
    expected = "# Title\n\n```python\nx = 1\n```\n\n````text\na\n```\n````\n\n```text\n7\n```\n\n![](try-1.png)\n"
    assert page_of(file) == expected
    assert images_of(file) == {"try-1.png": b"\x00\x01\x02"}


@pytest.mark.parametrize(
    "output",
    [
        ("error", {"ename": "KeyError", "evalue": "lost", "traceback": []}),
        ("stream", {"name": "stderr", "text": "UserWarning: lost"}),
        ("display_data", {"data": {"text/html": "lost"}}),
    ],
    ids=["error", "stderr", "html"],
)
def test_a_page_shows_no_errors_and_nothing_unknown(output: tuple[str, dict], tmp_path: Path) -> None:
    file = notebook(tmp_path, "x", outputs=[nbformat.v4.new_output(output[0], **output[1])])
    with pytest.raises(ValueError, match=r"try\.ipynb has an output that is no text on stdout and no image"):
        page_of(file)


def test_a_notebook_that_warns_is_refused(tmp_path: Path) -> None:
    file = notebook(tmp_path, "print(1)", "import warnings; warnings.warn('look out')")
    with pytest.raises(ValueError, match=r"try\.ipynb wrote to stderr: .*look out"):
        executed(file, tmp_path)
