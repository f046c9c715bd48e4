"""How the help of a command is laid out: a short usage, options by topic, examples at the end."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from deploykit.cli._parser import Parser

FOLDED = ("accuracy", "checkpoints", "engines", "graph", "images", "limits", "live", "precision int8", "timm")
"""How the headings begin of options that ``--help`` only lists; ``--help all`` and ``--help TOPIC`` explain them."""

ALL = "all"
COLUMN = 26  # where the explanation of an option begins


class HelpParser(Parser):
    """A parser with our help.

    Args:
        examples: command lines, each with what it does.
        settings: as of :class:`argparse.ArgumentParser`.
    """

    def __init__(self, *, examples: Sequence[tuple[str, str]] = (), **settings: Any) -> None:
        super().__init__(
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=COLUMN), **settings
        )
        self.examples = tuple(examples)
        self._positionals.title = "arguments"

    def format_usage(self) -> str:
        """Return the usage in one line: the words that are needed."""
        needed = [action for action in self.actions if action.required and action.option_strings]
        words = [self._placed(action) for action in self.positionals]
        words += [f"{action.option_strings[0]} {action.metavar or '...'}" for action in needed]
        return " ".join(["usage:", self.prog, *words, "[options]"]) + "\n"

    def format_help(self, topic: str | None = None) -> str:
        """Return the help.

        Args:
            topic: the beginning of a heading, whose options alone are explained; ``all``: every option is.
        """
        groups = [group for group in self._action_groups if group._group_actions]
        chosen = [group for group in groups if topic and str(group.title).startswith(topic)]
        formatter = self._get_formatter()
        if not chosen:
            formatter.add_text(self.description)
        folded = []
        for group in chosen or groups:
            if topic is None and str(group.title).startswith(FOLDED):
                folded.append(group)
                continue
            formatter.start_section(group.title)
            formatter.add_text(group.description)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        return "\n".join([self.format_usage(), formatter.format_help(), *self._folded(folded), *self._examples()])

    def topics(self) -> list[str]:
        """Return the first word of each heading."""
        return list(dict.fromkeys(_topic(group) for group in self._action_groups if group._group_actions))

    def _placed(self, action: argparse.Action) -> str:
        name = str(
            action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest)
        )
        named = (
            f"--{name.lower()}" in self.options or f"--{action.dest}" in self.options
        )  # it is needed, this way or so
        shown = f"{name}..." if action.nargs in ("*", "+") else name
        return shown if named or action.nargs not in ("*", "?") else f"[{shown}]"

    def _folded(self, groups: Sequence[Any]) -> list[str]:
        if not groups:
            return []
        topics: dict[str, list[str]] = {}
        for group in groups:
            topics.setdefault(_topic(group), []).extend(action.option_strings[0] for action in group._group_actions)
        lines = columns({topic: " ".join(names) for topic, names in topics.items()}, self._get_formatter()._width)
        return [f"more options ({self.prog} --help TOPIC, or --help {ALL}):\n{lines}"]

    def _examples(self) -> list[str]:
        if not self.examples:
            return []
        lines = [f"  # {told}\n  {command}\n" for command, told in self.examples]
        return ["examples:\n" + "".join(lines)]


class ShowHelp(argparse.Action):
    """Prints the help, all of it or one topic's, and ends the program."""

    def __init__(self, option_strings: Sequence[str], dest: str, **settings: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs="?", default=argparse.SUPPRESS, **settings)

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, values: Any, option_string: str | None = None
    ) -> None:
        """Print and end."""
        assert isinstance(parser, HelpParser)
        topic = values if values == ALL or any(name.startswith(str(values)) for name in parser.topics()) else None
        print(parser.format_help(topic), end="")
        parser.exit()


def columns(rows: Mapping[str, str], width: int) -> str:
    """Return indented lines of two columns, the second wrapped at ``width``."""
    import textwrap

    first = max(map(len, rows)) + 4
    lines = []
    for name, text in rows.items():
        wrapped = textwrap.wrap(text, max(width - first, 20), break_on_hyphens=False)
        lines += [f"  {name}".ljust(first) + wrapped[0], *(" " * first + line for line in wrapped[1:])]
    return "\n".join(lines) + "\n"


def _topic(group: Any) -> str:
    return str(group.title).split()[0]
