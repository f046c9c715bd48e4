"""``deploykit completion``: what shells complete with the script that it prints."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deploykit.cli import COMMANDS, main
from deploykit.cli._commands import Command
from deploykit.cli._shells import FILES, NOTHING, WORDS, Completed, Option, Value, bash, fish, zsh

AWKWARD = Completed(
    "cook",
    "it's: [hot]",
    (
        Option(("-p", "--pan"), "a 'pan': [big] $HOME `x` \\ %", Value("PAN", WORDS, ("iron", "steel*", "a:b"))),
        Option(("--egg",), "an egg", Value("FILE", FILES), repeats=True),
        Option(("--time",), "minutes", Value("N", NOTHING)),
        Option(("--salt",), "some", None),
    ),
    (Value("dish", WORDS, ("soup", "stew")), Value("FILE", FILES)),
    several=True,
)
"""A command whose texts have what shells would take for their own."""


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def shell_or_skip(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.fixture
def complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str, str], list[str]]:
    """Return what bash offers for the last word of a line, of the printed script or of another one."""

    def offered(line: str, text: str = "") -> list[str]:
        file = tmp_path / "completion.bash"
        file.write_text(text or script("bash", capsys))
        words = re.sub(r"=", " = ", line).split(" ")
        words = [word for word in words[:-1] if word] + words[-1:]
        code = (
            'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _deploykit; '
            "((${#COMPREPLY[@]})) && printf '%s\\n' \"${COMPREPLY[@]}\"; true"
        )
        done = subprocess.run(
            [shell_or_skip("bash"), "--norc", "-c", code, "bash", str(file), *words],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stderr == ""
        return done.stdout.splitlines()

    return offered


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("deploykit exp", ["export"]),
        ("deploykit -q exp", ["export"]),
        ("deploykit --qu", ["--quiet"]),
        ("deploykit export --form", ["--format"]),
        ("deploykit export --format ", ["onnx", "tensorrt", "tensorrt-rtx"]),
        ("deploykit export --format tensorrt-", ["tensorrt-rtx"]),
        ("deploykit export --format=onn", ["onnx"]),
        ("deploykit export --format=", ["onnx", "tensorrt", "tensorrt-rtx"]),
        ("deploykit export m.pt --score obj", ["obj", "obj*cls"]),
        ("deploykit export m.pt --no-ch", ["--no-check"]),
        ("deploykit plugins b", ["build"]),
        ("deploykit plugins --json te", ["test"]),
        ("deploykit completion f", ["fish"]),
        ("deploykit help exp", ["export"]),
        ("deploykit create yolov7-w6", ["yolov7-w6", "yolov7-w6-pose"]),
        ("deploykit create --seed 3 yolov7-w6-p", ["yolov7-w6-pose"]),
        ("deploykit export --batch ", []),
        ("deploykit predict ", []),  # bash completes files where nothing is offered
        ("deploykit predict m.onnx --out ", []),
    ],
)
def test_bash_completes(line: str, offered: list[str], complete: Callable[[str], list[str]]) -> None:
    assert complete(line) == offered


def test_bash_completes_every_command_and_every_option_of_each(complete: Callable[..., list[str]]) -> None:
    assert complete("deploykit ") == list(COMMANDS)
    for name in COMMANDS:
        assert complete(f"deploykit {name} -") == list(Command(name).options)


def test_bash_takes_no_text_for_its_own(complete: Callable[[str, str], list[str]]) -> None:
    text = bash([AWKWARD], [])
    assert complete("deploykit cook --pan ", text) == ["iron", "steel*", "a:b"]
    assert complete("deploykit cook -p st", text) == ["steel*"]
    assert complete("deploykit cook st", text) == ["stew"]
    assert complete("deploykit cook stew st", text) == []


def test_an_interactive_bash_completes_files_where_a_file_is_expected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.onnx").touch()
    (tmp_path / "completion.bash").write_text(script("bash", capsys))
    start = "PS1='ready> '; deploykit() { printf 'got:%s:\\n' \"$@\"; }; source completion.bash\n"
    terminal, its = pty.openpty()
    with subprocess.Popen(
        [shell_or_skip("bash"), "--norc", "--noprofile", "-i"],
        cwd=tmp_path, stdin=its, stdout=its, stderr=its, env={**os.environ, "TERM": "dumb"}, start_new_session=True,
    ) as process:  # fmt: skip
        os.close(its)
        try:
            os.write(terminal, f"{start}deploykit export mod\t --form\t --batch mod\t\nexit\n".encode())
            shown, deadline = b"", time.monotonic() + 20
            while time.monotonic() < deadline and process.poll() is None:
                if select.select([terminal], [], [], 0.2)[0]:
                    try:
                        shown += os.read(terminal, 4096)
                    except OSError:  # its end
                        break
        finally:
            process.kill()
            os.close(terminal)
    lines = re.findall(r"got:(.*):", shown.decode().replace("\r", ""))
    assert lines[-5:] == ["export", "model.onnx", "--format", "--batch", "mod"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_of_the_shell(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = shell_or_skip(shell)
    write = {"bash": bash, "zsh": zsh, "fish": fish}[shell]
    for text in (script(shell, capsys), write([AWKWARD], [])):
        (tmp_path / "script").write_text(text)
        subprocess.run([found, "-n", str(tmp_path / "script")], check=True)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("deploykit exp", ["export"]),
        ("deploykit export --format ", ["onnx", "tensorrt", "tensorrt-rtx"]),
        ("deploykit export --form", ["--format"]),
        ("deploykit plugins te", ["test"]),
        ("deploykit predict mod", ["model.onnx"]),
    ],
)
def test_fish_completes(line: str, offered: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = shell_or_skip("fish")
    (tmp_path / "model.onnx").touch()
    (tmp_path / "script").write_text(script("fish", capsys))
    done = subprocess.run(
        [found, "--no-config", "-c", f"source script; complete -C '{line}'"],
        cwd=tmp_path, capture_output=True, text=True, check=True, env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert [each.split("\t")[0] for each in done.stdout.splitlines()] == offered


def test_zsh_takes_the_function(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = shell_or_skip("zsh")
    (tmp_path / "_deploykit").write_text(script("zsh", capsys))
    done = subprocess.run(
        [found, "-f", "-c", "autoload -Uz compinit; compinit -u -d dump; . ./_deploykit; print $_comps[deploykit]"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "_deploykit\n", done.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_every_option_of_every_command_is_in_the_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    for name in COMMANDS:
        for option in Command(name).options:
            long = f"-l {option[2:]} " if option.startswith("--") else f"-s {option[1:]} "
            assert (long if shell == "fish" else f"){option}") in text or f"*{option}" in text
