"""Defaults of options from a configuration file, which the command line overrides.

What a file says becomes words of the command line, and is converted and checked as these are.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.cli._aliases import RENAMED
from deploykit.cli._commands import COMMANDS, Command, CommandLine
from deploykit.cli._suggest import nearest, option_for
from deploykit.errors import NotFoundError, UsageError

NAME = "deploykit.toml"
PROJECT = "pyproject.toml"
VARIABLE = "DEPLOYKIT_CONFIG"
COMMON = "defaults"
MAX_BYTES = 1 << 20

TYPED = {"--help", "--version", "--config", "--no-config", "--list", "--model", "--weights", "--engine", "--source"}
"""Options that only the command line may give: what a command is run on, and what it is asked once."""

TRUSTED = {"--executable", "--force", "--image", "--sha256", "--storage-uri", "--timm-pretrained", "--url"}
"""Options that only a file may give which the user has named: they replace files, load from the network, or choose
what a server will run."""

PATHS = {"FILE", "DIR", "FOLDER", "PATH", "IMAGE", "OUT"}
"""Metavars of options that name files: relative to the folder of the configuration file."""

EXPECTED: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    None: ((str,), "a text"),
    Path: ((str,), "a text"),
}
"""The type of an option -> the types of TOML that it takes; any other type takes numbers and texts."""


@dataclass(frozen=True)
class Config:
    """A configuration file.

    Attributes:
        path: the file.
        tables: command, or ``defaults`` -> key -> value.
        prefix: what stands before the name of a table, ``tool.deploykit.`` in pyproject.toml.
        named: the user has named the file; it was not found.
    """

    path: Path
    tables: Mapping[str, Any]
    prefix: str
    named: bool


@dataclass(frozen=True)
class Configured:
    """A command line with the defaults of a file in it, and what is to be said of that."""

    words: list[str]
    notes: tuple[str, ...] = ()


def with_config(line: CommandLine, words: list[str]) -> Configured:
    """Return the words of a command line with the defaults that a configuration file has for what is not typed.

    Raises:
        UsageError: the file is not understood, or has a key or a value that is wrong.
        NotFoundError: a file that was named does not exist.
    """
    end = words.index("--") if "--" in words else len(words)
    typed = words[:end]
    if line.name not in COMMANDS or {"-h", "--help", "--version", "--no-config"} & set(typed):
        return Configured(words)
    named = _named(typed) or os.environ.get(VARIABLE)
    notes: list[str] = []
    config = _read(_expanded(named), named=True) if named else _found(notes)
    if config is None:
        return Configured(words, tuple(notes))
    added = _words(config, line.command, typed)
    if added:
        notes.append(f"defaults from {_shown(config.path)}: {shlex.join(added)} (--no-config leaves them out)")
    return Configured([*typed, *added, *words[end:]], tuple(notes))


def _named(typed: Sequence[str]) -> str | None:
    """Return the value of ``--config``; argparse complains later if it has none."""
    for before, word in zip(["", *typed], typed, strict=False):
        if before == "--config" or word.startswith("--config="):
            return word.removeprefix("--config=")
    return None


def _expanded(path: str) -> Path:
    """Return a path with the home folder for ``~``, where this user has one: in a container there may be none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _found(notes: list[str]) -> Config | None:
    """Return the nearest file in the current folder or above it, up to the root of a repository or the home folder.

    Outside of both only the folder itself is looked into. A file that others may write is passed over with a note.
    """
    for folder in _searched():
        for path in (folder / NAME, folder / PROJECT):
            if not path.is_file() or (path.name == PROJECT and b"tool.deploykit" not in _bytes(path)):
                continue
            if not _is_ours(path):
                notes.append(f"{_shown(path)} is not read: another user may write it; --config {_shown(path)} reads it")
                continue
            if (config := _read(path, named=False)) is not None:
                return config
    return None


def _searched() -> list[Path]:
    """Return the folders to search; none: the current one was deleted, or may not be searched."""
    try:
        start = Path.cwd()
        start.stat()
        (start / NAME).is_file()
        folders = [start, *start.parents]
        home = _expanded("~")
        tops = [place for place, folder in enumerate(folders) if (folder / ".git").exists() or folder == home]
    except OSError:
        return []
    return folders[: tops[0] + 1 if tops else 1]


def _is_ours(path: Path) -> bool:
    """Whether only this user, or root, can have written a file."""
    if not hasattr(os, "geteuid"):
        return True
    found = path.stat()
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & 0o002


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as e:
        raise UsageError(f"{_shown(path)} cannot be read: {e.strerror}; --no-config does without it") from e
    if len(data) > MAX_BYTES:
        raise UsageError(f"{_shown(path)} is larger than 1 MiB, which no configuration is; --no-config does without it")
    return data


def _read(path: Path, *, named: bool) -> Config | None:
    """Return a file's configuration; None: it is a pyproject.toml without one."""
    import tomllib

    from deploykit.runtime.files import exists

    if not exists(path) or not path.is_file():
        raise NotFoundError(f"a configuration file was expected at {path}, but there is no such file")
    try:
        tables: Any = tomllib.loads(_bytes(path).decode())
    except (ValueError, RecursionError) as e:  # ValueError: also a whole number of more digits than Python reads
        raise UsageError(f"{_shown(path)} is not TOML: {e}") from e
    prefix = ""
    if path.name == PROJECT:
        prefix = "tool.deploykit."
        tool = tables.get("tool", {})
        tables = tool.get("deploykit") if isinstance(tool, dict) else None
        if tables is None:
            return None
        if not isinstance(tables, dict):
            raise UsageError(f"{_shown(path)}: tool.deploykit is not a table")
    for name, table in tables.items():
        meant = nearest(name, [COMMON, *COMMANDS])
        if name not in COMMANDS and name != COMMON:
            asked = f": did you mean [{prefix}{meant}]?" if meant else ""
            raise UsageError(f"{_shown(path)}: [{prefix}{name}] is no command{asked}")
        if not isinstance(table, dict):
            raise UsageError(f"{_shown(path)}: {prefix}{name} is not a table: write [{prefix}{name}]")
    return Config(path, tables, prefix, named)


def _words(config: Config, command: Command, typed: Sequence[str]) -> list[str]:
    """Return the words for what the file has for a command and is not typed."""
    taken = set(_typed(command, typed))
    own, common = (config.tables.get(name, {}) for name in (command.name, COMMON))
    words: list[str] = []
    for table, name, entries in ((own, command.name, own.items()), (common, COMMON, common.items())):
        for key, value in entries:
            where = f"{_shown(config.path)}: [{config.prefix}{name}] {key}"
            option = _option(key)
            if option not in command.options and table is common and option in _all_options():
                continue  # an option of other commands
            action = _action(command, option, where, named=config.named, common=table is common)
            try:
                found = _typed_as(command, action, option, value, config.path.parent)
            except (argparse.ArgumentError, UsageError) as e:
                raise UsageError(f"{where}: {e.message if isinstance(e, argparse.ArgumentError) else e}") from None
            if action.dest not in taken:
                words += found
        taken |= {action.dest for action in _actions(command, own)}
    return words


def _typed(command: Command, typed: Sequence[str]) -> Iterator[str]:
    """Yield the destinations that the typed options fill, and those of the options that these exclude."""
    for action in _actions(command, [word.partition("=")[0] for word in typed]):
        yield action.dest
        for group in command._mutually_exclusive_groups:
            if action in group._group_actions:
                yield from (other.dest for other in group._group_actions)


def _actions(command: Command, names: Sequence[str] | Mapping[str, Any]) -> Iterator[argparse.Action]:
    for name in names:
        option = name if name.startswith("-") else _option(name)
        if option in command.options:
            yield command.options[option]


def _option(key: str) -> str:
    """Return the option that a key names; a key may have the name of an earlier version."""
    option = f"--{key.replace('_', '-')}"
    return RENAMED.get(option, option)


def _all_options() -> set[str]:
    return {option for name in COMMANDS for option in Command(name).options}


def _action(command: Command, option: str, where: str, *, named: bool, common: bool) -> argparse.Action:
    """Return the option that a key names.

    Raises:
        UsageError: there is none, or a file may not give it.
    """
    if option in TYPED:
        raise UsageError(f"{where}: {option} is given on the command line only")
    if option in TRUSTED and not named:
        raise UsageError(f"{where}: {option} is given on the command line, or by a file that --config names")
    if option not in command.options or option.startswith("--no-"):
        known = _all_options() if common else command.options
        meant = option_for(option.replace("--no-", "--", 1), known)
        asked = f": did you mean {meant.removeprefix('--').replace(' ', ' = ', 1)}?" if meant else ""
        owner = None if asked else command.owner_of(option)
        raise UsageError(f"{where}: unknown key{asked}{f': an option of [{owner}]' if owner else ''}")
    return command.options[option]


def _typed_as(command: Command, action: argparse.Action, option: str, value: Any, folder: Path) -> list[str]:
    """Return the words that one would type for a value.

    Raises:
        argparse.ArgumentError: it is not of the option's type, choices or count.
    """
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise argparse.ArgumentError(action, f"expected true or false, got {value!r}")
        off = option.replace("--", "--no-", 1)
        return [option] if value else [off] if off in command.options else []
    repeats = isinstance(action, argparse._AppendAction)
    several = isinstance(action.nargs, int) or action.nargs in ("+", "*")
    each = value if repeats and isinstance(value, list) and (not several or _is_nested(value)) else [value]
    words: list[str] = []
    for one in each:
        values = one if several and isinstance(one, list) else [one]
        texts = [_text(action, part, folder) for part in values]
        command.converted(action, texts)
        words += [option, *texts] if several else [f"{option}={texts[0]}"]
    return words


def _is_nested(value: list[Any]) -> bool:
    return all(isinstance(part, list) for part in value)


def _text(action: argparse.Action, value: Any, folder: Path) -> str:
    if isinstance(value, list) and "," in str(action.metavar):
        value = ",".join(str(_text(action, part, folder)) for part in value)  # an option that takes N,N,...
    types, expected = EXPECTED.get(action.type, ((int, float, str), "a number or a text"))
    if isinstance(value, bool) or not isinstance(value, types):
        raise argparse.ArgumentError(action, f"expected {expected}, got {value!r}")
    text = str(value)
    if action.metavar in PATHS and ":" not in text:
        text = os.path.relpath(folder / _expanded(text))
    return text


def _shown(path: Path) -> str:
    """Return a path as one would type it here."""
    near = os.path.relpath(path)
    return str(path) if Path(near).parts[:3] == ("..", "..", "..") else near
