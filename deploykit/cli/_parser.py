"""Our parser of a command's words: an error is one line that says what was probably meant."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from deploykit.cli._suggest import option_for, value_for
from deploykit.errors import UsageError

KINDS: dict[Any, str] = {int: "a whole number", float: "a number"}
NUMBER = re.compile(r"-\.?\d")
COUNTS: dict[Any, str] = {None: "one value", "+": "at least one value", "?": "at most one value"}


class Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviated options, and whose errors are a :class:`UsageError`.

    Words may stand between options (``predict MODEL --conf 0.5 IMAGE``): those that are left over go to the last
    argument that takes several. An option that takes numbers ends where they do (``--img 640 480 MODEL``).
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"add_help": False, "allow_abbrev": False, "exit_on_error": False, **settings})

    @property
    def options(self) -> dict[str, argparse.Action]:
        """Every option as it is typed, with what it does."""
        return self._option_string_actions

    @property
    def actions(self) -> list[argparse.Action]:
        """Every option and argument once, in the order of the help."""
        return self._actions

    @property
    def positionals(self) -> list[argparse.Action]:
        """The arguments without a name."""
        return [action for action in self._actions if not action.option_strings]

    def owner_of(self, option: str) -> str | None:
        """Return the name of another command that has this option; a parser by itself knows none."""
        return None

    def parse_known_args(  # type: ignore[override]  # one signature for all of its overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse all of the words; no word is left over.

        Raises:
            UsageError: a word is not understood, or one is missing.
        """
        words = list(args or ())
        self._refuse_unknown_options(words)
        self._refuse_names_without_dashes(words)
        try:
            found, rest = super().parse_known_args(self._numbers_last(words), namespace)
            self._take_rest(found, [word for word in rest if word != "--"])
        except argparse.ArgumentError as e:
            self.error(e.message if e.argument_name is None else f"{e.argument_name}: {e.message}")
        return found, []

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            UsageError: always.
        """
        head, required, names = message.partition("the following arguments are required: ")
        if required:
            message = f"{head}missing: {', '.join(map(self._with_choices, names.split(', ')))}"
        raise UsageError(f"{message} (see {self.prog} --help)")

    def converted(self, action: argparse.Action, words: list[str]) -> Any:
        """Return the value of an option for the words that follow it.

        Raises:
            argparse.ArgumentError: they are not of its type, its choices or its count.
        """
        pattern = "A" * len(words)
        if self._match_argument(action, pattern) != len(words):
            raise argparse.ArgumentError(action, f"expected {_count(action)}, got {len(words)}")
        return self._get_values(action, words)

    def _with_choices(self, name: str) -> str:
        """Return the name of an argument with what it may be, where that is a list."""
        choices = next((list(map(str, a.choices)) for a in self.positionals if a.dest == name and a.choices), [])
        return f"{name} ({', '.join(choices[:-1])} or {choices[-1]})" if len(choices) > 1 else name

    def _take_rest(self, found: argparse.Namespace, rest: list[str]) -> None:
        several = [action for action in self.positionals if action.nargs in ("*", "+")]
        if rest and not several:
            self.error(f"unexpected argument {rest[0]!r}")
        if rest:
            known = getattr(found, several[-1].dest) or []
            setattr(found, several[-1].dest, [*known, *(self._get_value(several[-1], word) for word in rest)])

    def _refuse_unknown_options(self, words: Sequence[str]) -> None:
        for word in words:
            name = word.partition("=")[0]
            if word == "--":
                return
            if not _is_option(word) or name in self.options or self._is_short_ones(name):
                continue
            if (meant := option_for(name, self.options)) is not None:
                self.error(f"unknown option {name}: did you mean {meant}?")
            owner = self.owner_of(name)
            self.error(f"unknown option {name}{f': an option of deploykit {owner}' if owner else ''}")

    def _is_short_ones(self, word: str) -> bool:
        """Whether a word is several short options, as ``-qv``."""
        return len(word) > 1 and word[1] != "-" and all(f"-{letter}" in self.options for letter in word[1:])

    def _refuse_names_without_dashes(self, words: Sequence[str]) -> None:
        """Refuse ``imgsz=640``, as some tools take options, where it is neither an option's value nor a file.

        The message has all such words in the form of this command line, so that one try is enough.
        """
        from deploykit.runtime.files import exists

        refused, meant = [], []
        for before, word in zip(["", *words], words, strict=False):
            name, equals, value = word.partition("=")
            takes = self.options.get(before)
            if not equals or not name.isidentifier() or (takes is not None and takes.nargs != 0):
                continue
            option = option_for(name, self.options)
            if option is not None and not exists(Path(word)):
                refused.append(word)
                meant.append(self._with_value(option, value))
        if refused:
            asked = " ".join(filter(None, meant))
            self.error(f"{refused[0]!r} has no dashes: {f'did you mean {asked}?' if asked else 'leave it out'}")

    def _with_value(self, option: str, value: str) -> str:
        """Return an option as it is typed here for ``name=value``; empty: the value is the default, ``False``."""
        if " " in option or self.options[option].nargs == 0:  # it takes no value
            return "" if value.lower() in ("false", "0") else option
        choices = self.options[option].choices
        if not choices and value.lower() in ("true", "false"):  # save=True: which value is meant cannot be told
            return option if value.lower() == "true" else ""
        if choices and value not in choices:
            if value.lower() == "false":
                return ""
            value = value_for(value, map(str, choices)) or value
        return f"{option} {value}"

    def _numbers_last(self, words: list[str]) -> list[str]:
        """Move options that take any count of numbers behind the words that follow the numbers."""
        kept: list[str] = []
        moved: list[str] = []
        place = 0
        while place < len(words) and words[place] != "--":
            taken = self._numbers_at(words, place)
            (moved if taken else kept).extend(words[place : place + max(taken, 1)])
            place += max(taken, 1)
        return [*kept, *moved, *words[place:]]

    def _numbers_at(self, words: list[str], place: int) -> int:
        """Return how many words an option with its numbers takes if another word follows these; else 0."""
        action = self.options.get(words[place])
        if action is None or action.nargs not in ("+", "*") or action.type is None:
            return 0
        end = place + 1
        while end < len(words) and not _is_option(words[end]) and self._converts(action, words[end]):
            end += 1
        return end - place if place + 1 < end < len(words) and not _is_option(words[end]) else 0

    def _converts(self, action: argparse.Action, word: str) -> bool:
        try:
            self._get_value(action, word)
        except (argparse.ArgumentError, UsageError):
            return False
        return True

    # What argparse calls, for messages that say what was expected and what was found.

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        if action.type not in KINDS:
            return super()._get_value(action, arg_string)
        try:
            return float(arg_string) if action.type is float else int(arg_string)
        except ValueError:
            raise argparse.ArgumentError(action, f"expected {KINDS[action.type]}, got {arg_string!r}") from None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        names = [str(choice) for choice in action.choices]
        meant = value_for(str(value), names)
        asked = f": did you mean {meant}?" if meant else ""
        expected = " or ".join([", ".join(names[:-1]), names[-1]] if names[:-1] else names)
        raise argparse.ArgumentError(action, f"expected {expected}, got {value!r}{asked}")

    def _match_argument(self, action: argparse.Action, arg_strings_pattern: str) -> int:
        try:
            return super()._match_argument(action, arg_strings_pattern)
        except argparse.ArgumentError:
            raise argparse.ArgumentError(action, f"expected {_count(action)}") from None


def _is_option(word: str) -> bool:
    """Whether argparse takes a word for an option."""
    return word.startswith("-") and len(word) > 1 and " " not in word and not NUMBER.match(word)


def _count(action: argparse.Action) -> str:
    names = " ".join(action.metavar) if isinstance(action.metavar, tuple) else action.metavar or ""
    choices = f"one of {', '.join(map(str, action.choices))}" if action.choices else ""
    return choices or f"{COUNTS.get(action.nargs) or f'{action.nargs} values'}{f' ({names})' if names else ''}"
