"""llms.txt, the pages with a sentence about each, and llms-full.txt, their whole text, for programs that read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from deploykit.version import DOCS_URL

__all__ = ["write_llms"]

ABOUT = (
    "deploykit converts trained vision checkpoints to numerically verified ONNX models and TensorRT engines, and runs "
    "them without PyTorch."
)


def write_llms(app: Any, error: Exception | None) -> None:
    """Write both files into the site; Sphinx calls it at the end of a build."""
    if error is not None or app.builder.name != "html":
        return
    pages = _in_order(app)
    lines, whole = ["# deploykit", "", f"> {ABOUT}", ""], []
    for name in pages:
        text = Path(app.env.doc2path(name)).read_text(encoding="utf-8")
        title = app.env.titles[name].astext()
        lines.append(f"- [{title}]({DOCS_URL}/en/latest/{name}.html): {_first_sentence(text)}".removesuffix(": "))
        whole.append(f"<!-- {name} -->\n{text}")
    out = Path(app.outdir)
    (out / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (out / "llms-full.txt").write_text("\n".join(whole), encoding="utf-8")


def _in_order(app: Any) -> list[str]:
    """The pages as the tables of contents list them, each after its parent."""
    found: list[str] = []

    def add(name: str) -> None:
        if name not in found:
            found.append(name)
            for child in app.env.toctree_includes.get(name, []):
                add(child)

    add(app.config.root_doc)
    return found


def _first_sentence(text: str) -> str:
    body = re.sub(r"(?ms)^(`{3,}).*?^\1$|^#.*?$|^<!--.*?-->|^\|.*?$|^!\[.*?$", "", text)
    body = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", body)
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", body))
    sentences = (
        re.split(r"(?<=\.)\s|(?<=\u3002)", words)[0] for words in paragraphs if re.match(r"[A-Z`\u4e00-\u9fff]", words)
    )
    return next((words for words in sentences if words.endswith((".", "\u3002"))), "")
