"""A page for every exit code, from deploykit/error_texts.py and the classes' docstrings."""

from __future__ import annotations

import inspect

from deploykit.error_texts import SHELL_CODES, TEXTS, tree
from deploykit.errors import DeployError
from docs.site.text import as_markdown

__all__ = ["error_pages"]

UP = "../"


def error_pages() -> dict[str, str]:
    """Return the pages of the exit codes, and the list of them, by their places."""
    errors = {error.exit_code: error for error in tree()}
    pages = {f"errors/{code}.md": _page(code, error) for code, error in errors.items()}
    rows = [f"| [{code}]({code}.md) | `{error.__name__}` | {_meaning(error)} |" for code, error in errors.items()]
    rows += [f"| {code} | | {text} |" for code, text in SHELL_CODES.items()]
    table = "\n".join(["| code | error | meaning |", "|---|---|---|", *sorted(rows, key=_code)])
    toctree = "\n".join(["```{toctree}", ":hidden:", "", *map(str, errors), "```"])
    text = (
        "# Exit codes and errors\n\nEvery error of the command line is one line, which ends with "
        "`[deploykit help NN]`, and NN is the exit code. In Python, every error is a subclass of "
        f"`deploykit.DeployError` in `deploykit.errors`.\n\n{table}\n\n{toctree}\n"
    )
    return {**pages, "errors/index.md": text}


def _code(row: str) -> int:
    return int(row.strip("| [").split("]")[0].split(" ")[0])


def _meaning(error: type) -> str:
    return " ".join(str(inspect.getdoc(error)).split()).replace("``", "`")


def _page(code: int, error: type[DeployError]) -> str:
    text = TEXTS[code]
    parts = [f"# {code}: {error.__name__}", _meaning(error)]
    parts += ["## Usual causes", "\n".join(f"* {as_markdown(cause, UP)}." for cause in text.causes)]
    parts += ["## What to do", "\n".join(f"* {as_markdown(remedy, UP)}." for remedy in text.remedies)]
    if text.example:
        parts += ["## Example", f"```text\ndeploykit: {text.example} [deploykit help {code}]\n```"]
    bases = [base for base in error.__mro__[1:] if issubclass(base, DeployError)]
    kind = f", a kind of [`{bases[0].__name__}`]({bases[0].exit_code}.md)" if bases else ""
    parts.append(f"In Python: `deploykit.errors.{error.__name__}`{kind}.")
    return "\n\n".join(parts) + "\n"
