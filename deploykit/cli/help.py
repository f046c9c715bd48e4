"""``deploykit help``: explain a command, a topic of its options, or an exit code."""

from __future__ import annotations

import argparse

from deploykit.cli._commands import COMMANDS, Command, command_parser
from deploykit.cli._suggest import FOREIGN_TOPICS, nearest
from deploykit.error_texts import SHELL_CODES, TEXTS, explain
from deploykit.errors import NotFoundError
from deploykit.numerals import typed_number

EXAMPLES = (
    ("deploykit help export", "the options of a command"),
    ("deploykit help checkpoints", "a topic of options"),
    ("deploykit help 42", "an exit code"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("topic", metavar="WHAT", nargs="?", help="a command, a topic of options, or an exit code")
    parser.add_argument("part", metavar="TOPIC", nargs="?", help="after a command: all, or a topic of its options")


def run(args: argparse.Namespace) -> int:
    """Print the help."""
    topic = args.topic
    if topic is None:
        print(command_parser([]).format_help(), end="")
    elif (code := typed_number(topic)) is not None:
        print(explained_code(code))
    elif topic in COMMANDS:
        print(Command(topic).format_help(args.part), end="")
    else:
        print(_topic(topic), end="")
    return 0


def explained_code(code: int) -> str:
    """Return what an exit code means, what causes it and what to do.

    Raises:
        NotFoundError: no error has this code.
    """
    text = explain(code)
    if text is None:
        codes = ", ".join(map(str, sorted({*TEXTS, *SHELL_CODES})))
        raise NotFoundError(f"there is no exit code {code}: deploykit ends with {codes}")
    return text


def _topic(topic: str) -> str:
    topics: dict[str, Command] = {}
    for name in COMMANDS:
        command = Command(name)
        for each in command.topics():
            topics.setdefault(each, command)
    if topic in topics:
        return topics[topic].format_help(topic)
    meant = FOREIGN_TOPICS.get(topic.lower()) or nearest(topic, [*COMMANDS, *topics])
    asked = f": did you mean deploykit help {meant}?" if meant else ""
    raise NotFoundError(f"there is no help about {topic!r}{asked}; deploykit --help lists the commands")
