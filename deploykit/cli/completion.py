"""``deploykit completion``: the script with which a shell completes commands, options, their values and files."""

from __future__ import annotations

import argparse

from deploykit.cli._commands import COMMANDS, Command, CommandLine
from deploykit.cli._shells import FILES, NOTHING, WORDS, Completed, Option, Value, bash, fish, zsh

SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}

EXAMPLES = (
    ("deploykit completion bash > ~/.local/share/bash-completion/completions/deploykit", "for bash"),
    ("deploykit completion zsh > ~/.zfunc/_deploykit", "for zsh, where ~/.zfunc is a folder of $fpath"),
    ("deploykit completion fish > ~/.config/fish/completions/deploykit.fish", "for fish"),
)

NAMES = {"FILE", "DIR", "FOLDER", "PATH", "IMAGE", "OUT", "MODEL", "SOURCE", "A", "B"}
"""How arguments are called whose values are files."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("shell", choices=tuple(SHELLS), help="the shell; it reads the script that is printed")


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    print(SHELLS[args.shell]([completed(name) for name in COMMANDS], general_options()), end="")
    return 0


def general_options() -> list[Option]:
    """Return the options that stand before a command."""
    return [_option(action) for action in CommandLine([]).actions]


def completed(name: str) -> Completed:
    """Return what can be completed of a command."""
    command = Command(name)
    return Completed(
        name,
        COMMANDS[name],
        tuple(_option(action) for action in command.actions if action.option_strings),
        tuple(_value(action, name) for action in command.positionals),
        any(action.nargs in ("*", "+") for action in command.positionals),
    )


def _option(action: argparse.Action) -> Option:
    takes = action.nargs != 0 and not (action.nargs == "?" and "-h" in action.option_strings)
    told = " ".join(str(action.help or "").split()).replace("%%", "%")
    repeats = isinstance(action, argparse._AppendAction)
    return Option(tuple(action.option_strings), told, _value(action) if takes else None, repeats)


def _value(action: argparse.Action, command: str = "") -> Value:
    name = action.metavar if isinstance(action.metavar, str) else action.dest
    words = tuple(map(str, action.choices)) if action.choices else _names(command, action.dest)
    return Value(name, WORDS, words) if words else Value(name, FILES if name in NAMES else NOTHING)


def _names(command: str, place: str) -> tuple[str, ...]:
    """Return the names that stand at a place of a command: of models, of commands."""
    from deploykit.cli.models import listed_models
    from deploykit.releases.table import RELEASED

    if (command, place) == ("help", "topic"):
        return tuple(COMMANDS)
    if (command, place) == ("create", "name"):
        return tuple(row["name"] for row in listed_models())
    return tuple(RELEASED) if (command, place) == ("fetch", "name") else ()
