"""Every error is explained, by a message that the code has."""

from __future__ import annotations

import ast
import re

import pytest

from deploykit.cli._commands import COMMANDS, Command
from deploykit.error_texts import SHELL_CODES, TEXTS, explain, tree
from tests.test_docs import ROOT, modules

ERRORS = {error.exit_code: error for error in tree()}


def constants() -> set[str]:
    """The pieces of text in every module but the one that explains them, with their runs of spaces as one."""
    found = set()
    for file in modules():
        if file.name != "error_texts.py":
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value.strip())
    return {text for text in found if len(text) >= 8 and "\n" not in text}


def test_every_error_has_a_text_and_a_code_of_its_own() -> None:
    assert TEXTS.keys() == ERRORS.keys()
    assert len(ERRORS) == len(list(tree()))
    assert not TEXTS.keys() & SHELL_CODES.keys()


def test_the_examples_are_messages_of_the_code() -> None:
    pieces = constants()
    for code, text in TEXTS.items():
        if text.example:
            found = {piece for piece in pieces if piece in text.example}
            covered = sum(map(len, {piece for piece in found if not any(piece in o and piece != o for o in found)}))
            assert covered >= min(0.4 * len(text.example), 20), (code, covered, len(text.example), found)


@pytest.mark.parametrize("code", [*ERRORS, *SHELL_CODES])
def test_a_code_is_explained(code: int) -> None:
    text = explain(code)
    assert text is not None
    assert text.startswith(f"exit code {code}: ")
    if code in ERRORS:
        assert ERRORS[code].__name__ in text
        assert f"errors/{code}.html" in text
        assert "what to do:" in text


def test_no_other_code_is() -> None:
    assert explain(5) is None


def test_the_diagram_of_the_errors_has_every_class_with_its_code() -> None:
    page = (ROOT / "deploykit" / "errors.py").read_text().split('"""')[1]
    for code, error in ERRORS.items():
        (line,) = (line for line in page.splitlines() if error.__name__ in line.split() and " " * 2 in line)
        assert str(code) in line.split()


def test_the_texts_name_commands_and_options_that_exist() -> None:
    options = {option for name in COMMANDS for option in Command(name).options} | {"--gpus"}
    for text in TEXTS.values():
        for line in text.remedies:
            named = set(re.findall(r"deploykit ([a-z]+)", line)) - {"if", "runs", "takes"}
            assert named <= {*COMMANDS, "help"}, line
            assert set(re.findall(r"--[a-z][\w-]*", line)) <= options, line
