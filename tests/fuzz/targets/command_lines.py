"""Command lines: options of every command with values of every kind; some of them are run."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from random import Random

import cv2
import numpy as np

from deploykit.cli import main
from deploykit.cli._commands import COMMANDS, Command, command_parser
from deploykit.errors import OutOfMemoryError, UnexpectedError, UsageError
from tests.cell_model import cell_spec, write_cell_model
from tests.fuzz.target import Failed, Files, Target

VALUES = (
    "0", "1", "2", "-1", "0.5", "1.5", "-0.5", "nan", "inf", "1e400", "1e-320", "9" * 5000, "0x10", "1_0", "١", "",
    " ", "x", "auto", "cpu", "cuda:0", "cuda:-1", "cuda:99", "none", "all", "default", "640", "640,640", "64 64",
    "1,2,3", "a=b", "=", ",", "a.png", "m.onnx", "missing.onnx", "broken.onnx", "broken.png", "images", "*.png", "[",
    "[!", "é", "\udc80", "\x1b[2J", "a\nb", "%s", "{}", "-", "--", "x" * 5000, "10M", "1G", "1h", "true", "red",
    "red,blue", "json", "csv", "fp16", "int8",
)  # fmt: skip
RUN = ("predict", "inspect", "help", "models", "completion", "bench")
FORBIDDEN = ("/", "\\", "..", "~", "$", "://", "\x00", "www", "stdin", "-")
"""What a word that is run must not have: it leads out of the target's folder, to the network or to standard input."""
WAITS = (
    "--show",
    "--duration",
    "--runs",
    "--warmup",
    "--iterations",
    "--repeat",
    "--compare",
    "--workers",
    "--max-input",
    "--every",
)


class CommandLines(Target):
    """Every command is parsed; those that only read and compute are run, in a folder of their own."""

    name, memory, room = "command_lines", 512 << 20, 1 << 30

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.options = {name: sorted(Command(name).options) for name in COMMANDS}
        self.values = {
            name: [str(choice) for action in Command(name).actions for choice in action.choices or ()]
            for name in COMMANDS
        }
        write_cell_model(folder / "m.onnx", spec=cell_spec())
        (folder / "images").mkdir()
        for path in (folder / "a.png", folder / "images" / "b.png"):
            cv2.imwrite(str(path), np.zeros((64, 64, 3), np.uint8))
        (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:40])
        (folder / "broken.onnx").write_bytes((folder / "m.onnx").read_bytes()[:200])

    def make(self, random: Random) -> Files:
        command = random.choice((*RUN, *COMMANDS)) if random.random() < 0.98 else random.choice(VALUES)
        known = self.options.get(command, ["--help"])
        words = [command]
        if random.random() < 0.8:
            words += random.choices(
                ("m.onnx", "a.png", "images", *VALUES), (20, 10, 5, *[1] * len(VALUES)), k=random.randint(0, 3)
            )
        pool = (*VALUES, *self.values.get(command, ()) * 3)
        for option in random.choices(known, k=random.choice((0, 1, 1, 2, 2, 3, 5))):
            value = random.choice(pool)
            words += random.choice(
                ([option, value], [option, value], [option], [f"{option}={value}"], [option, value, value])
            )
        if random.random() < 0.2:
            random.shuffle(words)
        if random.random() < 0.1:
            place = random.randrange(len(words))
            words[place] = words[place][: random.randint(0, 8)] + random.choice(("", "-", "=", "x", "--"))
        return {"words": json.dumps([words, command in RUN and random.random() < 0.4]).encode()}

    def take(self, files: Files) -> None:
        words, run = json.loads(files["words"])
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            if run and _harmless(words):
                _run(words)
            else:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
                    line = command_parser(words)
                    line.parse_args(line.unaliased(words)[0])
        finally:
            os.chdir(before)


def _harmless(words: list[str]) -> bool:
    return not any(
        any(part in word.lstrip("-") for part in FORBIDDEN[:-1]) or word == "-" or word.split("=")[0] in WAITS
        for word in words
    ) and (words[:1] != ["bench"] or "--duration" not in words)


def _run(words: list[str]) -> None:
    """Run a command; its exit code and its message are those of the tree.

    Raises:
        UnexpectedError, OutOfMemoryError, Failed: they are not. UsageError: the command was refused.
    """
    if words[0] == "bench":
        words = [*words, "--duration", "0.01", "--time-limit", "1"]
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            code = main([*words, "--no-config"])
        except SystemExit as e:
            code = int(e.code or 0)
    text = said.getvalue().strip()
    if code == UnexpectedError.exit_code:
        raise UnexpectedError(text)
    if code == OutOfMemoryError.exit_code:
        raise OutOfMemoryError(text)
    if "Traceback" in text or not 0 <= code < 128:
        raise Failed(f"exit code {code}: {text}")
    if code:
        raise UsageError(text.splitlines()[-1] if text else "")


TARGET = CommandLines
