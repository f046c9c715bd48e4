"""The commands, by what people want to do, and the parser of a command line."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from typing import Any, NoReturn

from deploykit.cli._aliases import unaliased
from deploykit.cli._help import HelpParser, ShowHelp, columns
from deploykit.cli._suggest import TASKS, command_for, command_for_file
from deploykit.version import __version__

GROUPS = {
    "run a model": {
        "predict": "run a model on images, folders, videos or a camera",
        "demo": "try it: find codes on an image by a small model that ships",
    },
    "export and verify": {
        "export": "convert a checkpoint to verified ONNX and TensorRT",
        "quantize": "convert any fp32 ONNX file to fp16, bf16, int8 or fp8, verified",
        "compare": "check that two models give the same outputs",
        "verify": "verify an exported model against its reference, as a gate in CI",
    },
    "measure": {
        "eval": "score a model on annotated images: AP, accuracy, mIoU, PSNR",
        "bench": "measure how long a model takes, alone and end to end",
    },
    "serve and scale": {
        "serve": "answer requests with models, over HTTP and gRPC",
        "cluster": "run a model on many images by many processes or machines",
        "package": "write what servers need: for Triton, Docker, KServe, systemd",
    },
    "look into files": {
        "inspect": "describe a checkpoint or an exported model",
        "sign": "sign a model or a folder, by a key, a certificate or Sigstore",
        "preflight": "tell which runtimes take an ONNX file, and what stops others",
        "data": "convert a YOLO data set to COCO annotations",
    },
    "get models": {
        "models": "list the models that can be built by name",
        "fetch": "download a released checkpoint (SHA-256 verified where known)",
        "create": "write a checkpoint with seeded random weights",
    },
    "set up": {
        "doctor": "check the installation: what works, and how to get the rest",
        "plugins": "build, describe or check the native libraries (C++, CUDA)",
        "completion": "print the completion script for bash, zsh or fish",
        "help": "explain a command, a topic of options or an exit code",
    },
}
"""What people want to do -> the commands for it, each with one line. A command is the file ``cli/<name>.py``."""

COMMANDS = {name: summary for group in GROUPS.values() for name, summary in group.items()}

ABOUT = "From a trained vision checkpoint to a verified ONNX file, and the runtime that serves it."


class Command(HelpParser):
    """The parser of one command, whose module is imported for it."""

    def __init__(self, name: str) -> None:
        module = import_module(f"deploykit.cli.{name}")
        summary = COMMANDS[name]
        super().__init__(
            prog=f"deploykit {name}",
            description=f"{summary[0].upper()}{summary[1:]}.",
            examples=getattr(module, "EXAMPLES", ()),
        )
        self.name = name
        module.add_arguments(self)
        _add_general(self)
        self.set_defaults(run=module.run, command=name)

    def owner_of(self, option: str) -> str | None:
        """Return the first other command that has this option."""
        return next((name for name in COMMANDS if name != self.name and option in Command(name).options), None)


class CommandLine(HelpParser):
    """The parser of a command line: options of every command, the command, and its words.

    Args:
        words: the command line; the arguments of the command that it names are known, of the others not.
    """

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__(prog="deploykit", description=ABOUT)
        _add_general(self)
        self.add_argument("--version", action="version", version=f"deploykit {__version__}", help="show the version")
        place = self._place(words)
        self.name = words[place] if place < len(words) else None

    @cached_property
    def command(self) -> Command:
        """The parser of the command.

        Raises:
            UsageError: none is named, or one that does not exist.
        """
        if self.name is None:
            self.error("missing: COMMAND")
        if self.name not in COMMANDS:
            self._refuse(self.name)
        return Command(self.name)

    def parse_known_args(  # type: ignore[override]  # one signature for all of its overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse the words before the command, and then its own."""
        words = list(args or ())
        place = self._place(words)
        before, after = words[:place], words[place + 1 :]
        if self.name in COMMANDS and (asked := {"-h", "--help"}.intersection(before)):
            before, after = [word for word in before if word not in asked], ["--help", *after]
        found, _ = super().parse_known_args(before, namespace)
        return self.command.parse_known_args(unaliased(after, self.command.options)[0], found)

    def unaliased(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the words with what people type out of habit replaced (``_aliases.py``), and notes on that.

        Raises:
            UsageError: two of them contradict each other.
        """
        place = self._place(words)
        if self.name not in COMMANDS:
            return list(words), []
        after, notes = unaliased(words[place + 1 :], self.command.options)
        return [*words[: place + 1], *after], notes

    def format_usage(self) -> str:
        """Return the usage in one line."""
        return "usage: deploykit COMMAND [options]\n"

    def format_help(self, topic: str | None = None) -> str:
        """Return the commands by what people want to do, each with its line."""
        width = self._get_formatter()._width
        longest = max(map(len, COMMANDS))
        parts = [self.format_usage(), f"{ABOUT}\n"]
        for heading, group in GROUPS.items():
            parts.append(f"{heading}:\n{columns({name.ljust(longest): text for name, text in group.items()}, width)}")
        general = {", ".join(action.option_strings): str(action.help) for action in self.actions}
        parts.append(f"options of every command:\n{columns(general, width)}")
        parts.append("deploykit COMMAND --help explains one command; deploykit help NN explains the exit code NN.\n")
        return "\n".join(parts)

    def _place(self, words: Sequence[str]) -> int:
        """Return where the command stands; the number of words if none does."""
        before = None
        for place, word in enumerate(words):
            takes_value = before in self.options and self.options[before].nargs is None
            if not word.startswith("-") and not takes_value:
                return place
            before = word
        return len(words)

    def _refuse(self, name: str) -> NoReturn:
        if meant := command_for_file(name):
            self.error(f"{name!r} is a file, not a command: did you mean {meant}?")
        if name.lower() == "train":
            self.error("deploykit does not train: it exports and runs what other projects have trained")
        if name.lower() in TASKS:
            self.error(f"{name!r} is no command: the model tells its task; write deploykit predict MODEL SOURCE")
        meant = command_for(name, COMMANDS)
        self.error(f"unknown command {name!r}{f': did you mean {meant}?' if meant else ''}")


def _add_general(parser: argparse.ArgumentParser) -> None:
    """Declare the options of every command, which may stand before it too."""
    group = parser.add_argument_group("general")
    group.add_argument(
        "-h", "--help", action=ShowHelp, metavar="TOPIC", help="show this help, or all of it (--help all)"
    )
    for names, level, text in (
        (("-q", "--quiet"), logging.ERROR, "print errors and results only: no notes, no progress"),
        (("-v", "--verbose"), logging.DEBUG, "print what is loaded, by what it is run, and how long it takes"),
    ):
        group.add_argument(*names, dest="level", action="store_const", const=level, default=logging.WARNING, help=text)
    group.add_argument(
        "--config",
        metavar="FILE",
        help="take defaults of options from this file (default: deploykit.toml, if there is one)",
    )
    group.add_argument("--no-config", action="store_true", help="take no defaults from a configuration file")
    group.add_argument("--traceback", action="store_true", help="show the traceback of an error")


def command_parser(words: Sequence[str]) -> CommandLine:
    """Return the parser of a command line, see :class:`CommandLine`."""
    return CommandLine(words)
