"""Options of the command line that fill a dataclass, which has the defaults: only typed options are filled in."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Generic, TypeVar

Options = TypeVar("Options")


@dataclass(frozen=True)
class Flag:
    """One option.

    Attributes:
        name: the option as typed, such as ``--tf32``; ``--no-...`` turns off a field that is True.
        field: the field of the dataclass; empty: the command reads the option itself.
        help: the help text; the field's default is added unless it is None, False, empty or in the text already.
        metavar, type, choices, nargs: as in argparse.
        repeats: the option may be given several times.
        fills: converts the typed value to the field's value; None keeps it.
    """

    name: str
    field: str
    help: str
    metavar: str | tuple[str, ...] | None = None
    type: Callable[[str], Any] | None = None
    choices: tuple[str, ...] | None = None
    nargs: int | str | None = None
    repeats: bool = False
    fills: Callable[[Any], Any] | None = None

    @property
    def key(self) -> str:
        """The option's name in the parsed arguments."""
        return self.name.removeprefix("--").replace("-", "_")

    def value(self, args: argparse.Namespace) -> Any:
        """Return the field's value for the parsed arguments."""
        typed = getattr(args, self.key)
        return typed if self.fills is None else self.fills(typed)


class Flags(Generic[Options]):
    """The options that fill one dataclass.

    Args:
        owner: the dataclass.
        groups: heading in the help -> the options below it.
    """

    def __init__(self, owner: type[Options], groups: Mapping[str, Sequence[Flag]]) -> None:
        self.owner, self.groups = owner, groups
        found = {field.name: field for field in fields(owner)}  # type: ignore[arg-type]  # it is a dataclass
        self.defaults = {name: field.default for name, field in found.items()}

    def add(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        for heading, flags in self.groups.items():
            group = parser.add_argument_group(heading)
            for flag in flags:
                group.add_argument(flag.name, **self._settings(flag))

    def given(self, args: argparse.Namespace, *headings: str) -> list[str]:
        """Return the options that differ from their default; with ``headings`` only those below them."""
        flags = [flag for heading in headings or self.groups for flag in self.groups[heading]]
        return [flag.name for flag in flags if flag.key in args and flag.value(args) != self.defaults.get(flag.field)]

    def fill(self, args: argparse.Namespace, **others: Any) -> Options:
        """Return the dataclass with the values of the command line and ``others``."""
        for flag in (flag for flags in self.groups.values() for flag in flags):
            if flag.field and flag.key in args:
                others[flag.field] = flag.value(args)
        return self.owner(**others)

    def _settings(self, flag: Flag) -> dict[str, Any]:
        """Return the arguments for ``add_argument``."""
        default = self.defaults.get(flag.field, MISSING)
        settings: dict[str, Any] = {"help": flag.help, "default": argparse.SUPPRESS}
        if isinstance(default, bool) and flag.fills is None:
            negative = flag.name.startswith("--no-")
            settings["action"] = (
                "store_false" if negative else argparse.BooleanOptionalAction if default else "store_true"
            )
            said = "yes" if default and not negative else ""
        else:
            parts = {"metavar": flag.metavar, "type": flag.type, "choices": flag.choices, "nargs": flag.nargs}
            settings |= {name: value for name, value in parts.items() if value is not None}
            settings |= {"action": "append"} if flag.repeats else {}
            said = "" if default is MISSING or default is False or default in (None, "", ()) else str(default)
        if said and "(default" not in flag.help and "(no default" not in flag.help:
            settings["help"] = f"{flag.help} (default {said})"
        return settings
