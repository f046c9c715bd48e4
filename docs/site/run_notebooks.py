"""``python -m docs.site.run_notebooks [FILE...]``: execute notebooks, and write them with their new outputs.

Each runs in a temporary folder. What says something about the machine is not written: metadata, times, folders.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

__all__ = ["FOLDER", "executed"]

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "notebooks"


def executed(file: Path, folder: Path, *, seconds: int = 300) -> Any:
    """Return a notebook as it is after its cells ran in ``folder``, without metadata.

    Args:
        file: the notebook, which stays as it is.
        folder: the working directory of its cells, which import this deploykit.
        seconds: the most that one cell may take.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
        ValueError: a cell wrote to stderr, which is where warnings go.
    """
    notebook = nbformat.read(file, as_version=4)  # type: ignore[no-untyped-call]  # nbformat has no types
    client = NotebookClient(
        notebook,
        timeout=seconds,
        kernel_name="python3",
        extra_arguments=["--log-level=40"],  # it warns of its own sockets, which are of this machine alone
        resources={"metadata": {"path": str(folder)}},
    )
    with tempfile.TemporaryDirectory() as settings:  # not the user's own, nor a history of theirs
        client.execute(env={**os.environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": settings})
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr":
                raise ValueError(f"{file.name} wrote to stderr: {output.text}")
    return _cleaned(notebook)


def _cleaned(notebook: Any) -> Any:
    """The notebook without metadata, with the text of consecutive outputs in one."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells, 1):
        cell.id, cell.metadata = f"cell-{number}", {}
        outputs: list[Any] = []
        for output in cell.get("outputs", ()):
            if "metadata" in output:
                output.metadata = {}
            if "data" in output:
                output.data.pop("text/html", None)
            if output.output_type == "stream" and outputs and outputs[-1].output_type == "stream":
                outputs[-1].text += output.text
            else:
                outputs.append(output)
        if "outputs" in cell:
            cell.outputs = outputs
    return notebook


def main() -> None:
    """Execute the notebooks that the command line names, or all."""
    parser = argparse.ArgumentParser(prog="python -m docs.site.run_notebooks", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, default=sorted(FOLDER.glob("*.ipynb")), metavar="FILE")
    for file in parser.parse_args().files:
        with tempfile.TemporaryDirectory() as folder:
            notebook = executed(file, Path(folder))
        nbformat.write(notebook, file)  # type: ignore[no-untyped-call]  # nbformat has no types
        print(f"{file.name}: {sum(cell.cell_type == 'code' for cell in notebook.cells)} cells ran")


if __name__ == "__main__":
    main()
