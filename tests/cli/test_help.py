"""``deploykit help``: commands, topics of options, exit codes."""

from __future__ import annotations

import inspect
import shlex

import pytest

from deploykit import errors
from deploykit.cli import COMMANDS, command_parser, main
from deploykit.cli._commands import GROUPS, Command
from deploykit.cli._help import FOLDED
from deploykit.cli._suggest import FOREIGN_TOPICS

CODES = {
    error.exit_code: error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, errors.DeployError)
}


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["help", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("code", CODES)
def test_every_exit_code_is_explained_by_its_error(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, str(code))
    assert out.startswith(f"exit code {code}: {CODES[code].__name__}\n\n")
    assert str(inspect.getdoc(CODES[code])) in out
    assert out.endswith(f"/errors/{code}.html\n")


@pytest.mark.parametrize(("code", "word"), [(0, "Success"), (130, "Ctrl-C"), (141, "read"), (143, "SIGTERM")])
def test_the_codes_of_a_shell_are_explained_too(code: int, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert word in said(capsys, str(code))


def test_a_code_that_deploykit_does_not_end_with(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "77"]) == 4
    assert capsys.readouterr().err.startswith(
        "deploykit: there is no exit code 77: deploykit ends with 0, 1, 2, 3, 4, 10"
    )


def test_help_without_a_word_is_that_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys)
    for heading, group in GROUPS.items():
        assert f"\n{heading}:\n" in out
        assert all(f"\n  {name} " in out for name in group)


def test_every_command_has_one_line_in_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = command_parser([]).format_help().splitlines()
    assert all(any(line.endswith(f"  {text}") for line in lines) for text in COMMANDS.values())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_is_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, name) == Command(name).format_help()
    assert said(capsys, name, "all") == Command(name).format_help("all")


def test_a_topic_of_options_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "checkpoints")
    assert "--entry NAME" in out
    assert "the entry whose weights are taken" in out
    assert "--traceback" not in out


def test_what_nobody_knows_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "chekpoints"]) == 4
    assert "there is no help about 'chekpoints': did you mean deploykit help checkpoints?" in capsys.readouterr().err


@pytest.mark.parametrize("word", FOREIGN_TOPICS)
def test_a_word_of_a_topic_leads_to_it(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", word]) == 4
    topic = capsys.readouterr().err.split("did you mean deploykit help ")[1].split("?")[0]
    assert main(["help", topic]) == 0


def test_what_is_folded_is_a_heading_of_some_command() -> None:
    headings = {str(group.title) for name in COMMANDS for group in Command(name)._action_groups}
    assert not [start for start in FOLDED if not any(heading.startswith(start) for heading in headings)]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_fits_a_screen_or_two(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert Command(name).format_help().count("\n") < 100


EXAMPLES = [(name, example) for name in COMMANDS for example, _ in Command(name).examples]


def split(example: str) -> list[str]:
    """The words of an example without where its output goes."""
    return shlex.split(example.partition(" > ")[0])


def test_every_command_has_examples() -> None:
    assert not [name for name in COMMANDS if not Command(name).examples]


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_every_example_parses(name: str, example: str) -> None:
    words = split(example)
    assert words[:2] == ["deploykit", name]
    assert callable(command_parser(words[1:]).parse_args(words[1:]).run)


NEED_NOTHING = [
    example
    for name, example in EXAMPLES
    if name in ("completion", "help") or example in ("deploykit models", "deploykit fetch --list")
]


@pytest.mark.parametrize("example", NEED_NOTHING)
def test_examples_that_need_nothing_run(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(split(example)[1:]) == 0
    out, err = capsys.readouterr()
    assert len(out) > 50
    assert err == ""


def test_some_examples_need_nothing() -> None:
    assert len(NEED_NOTHING) == 8
