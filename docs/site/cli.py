"""The reference of the command line, from the parsers themselves."""

from __future__ import annotations

import argparse
from typing import Any

from deploykit.cli._commands import COMMANDS, GROUPS, Command
from docs.site.text import as_markdown

__all__ = ["cli_pages"]

UP = "../../"


def cli_pages() -> dict[str, str]:
    """Return a page for each command, and the list of them, by their places."""
    pages = {f"reference/cli/{name}.md": _page(name) for name in COMMANDS}
    parts = ["# Command line", "The model is the first word of every command that takes one. `deploykit help COMMAND`"
             " prints what these pages say; exit codes are on [their own pages](../errors/index.md)."]  # fmt: skip
    for heading, commands in GROUPS.items():
        rows = [
            f"| [`deploykit {name}`](cli/{name}.md) | {as_markdown(summary, UP)} |"
            for name, summary in commands.items()
        ]
        parts.append("\n".join([f"## {heading[0].upper()}{heading[1:]}", "", "| | |", "|---|---|", *rows]))
    parts.append("\n".join(["```{toctree}", ":hidden:", "", *(f"cli/{name}" for name in COMMANDS), "```"]))
    return {**pages, "reference/cli.md": "\n\n".join(parts) + "\n"}


def _page(name: str) -> str:
    command = Command(name)
    parts = [f"# deploykit {name}", as_markdown(str(command.description or ""), UP), f"```text\n{_usage(command)}\n```"]
    examples = [f"# {told}\n{words}" if told else words for words, told in command.examples]
    if examples:
        parts += ["## Examples", "```bash\n" + "\n".join(examples) + "\n```"]
    for group in command._action_groups:
        if group._group_actions:
            title = str(group.title)
            parts.append(f"## {as_markdown(title[0].upper() + title[1:], UP)}")
            if group.description:
                parts.append(as_markdown(group.description, UP))
            rows = [_row(action, command) for action in group._group_actions if action.help != argparse.SUPPRESS]
            parts.append("\n".join(["| | |", "|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _usage(command: Command) -> str:
    return command.format_usage().removeprefix("usage: ").strip()


def _row(action: argparse.Action, command: Command) -> str:
    value = _value(action)
    names = [f"`{name}{f' {value}' if value else ''}`" for name in action.option_strings] or [f"`{value}`"]
    settings: dict[str, Any] = {**vars(action), "prog": command.prog}
    told = str(action.help or "") % {key: value for key, value in settings.items() if value is not argparse.SUPPRESS}
    return f"| {', '.join(names)} | {as_markdown(told, UP)} |".replace("\n", " ")


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    names = action.metavar or (
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices is not None else action.dest.upper()
    )
    name = " ".join(names) if isinstance(names, tuple) else str(names)
    return (
        f"[{name}]"
        if action.nargs == "?" and action.option_strings
        else f"{name} ..."
        if action.nargs in ("*", "+")
        else name
    )
