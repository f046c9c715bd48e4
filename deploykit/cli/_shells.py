"""Completion scripts for shells, written from what the parsers know; a script runs without Python."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

FILES = "files"
WORDS = "words"
NOTHING = "nothing"


@dataclass(frozen=True)
class Value:
    """What follows an option, or stands at a place of its own.

    Attributes:
        name: how the help calls it.
        kind: files; some words; or nothing that could be completed, such as a number.
        words: those.
    """

    name: str
    kind: str
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Option:
    """One option: its names, what its help says, what follows it (None: nothing), and whether it may be repeated."""

    names: tuple[str, ...]
    help: str
    value: Value | None
    repeats: bool = False


@dataclass(frozen=True)
class Completed:
    """A command: its line in the help, its options, and what its words are; the last may be there several times."""

    name: str
    summary: str
    options: tuple[Option, ...]
    places: tuple[Value, ...]
    several: bool = False


def bash(commands: Sequence[Completed], general: Sequence[Option]) -> str:
    """Return the script for bash 3.2 and later."""
    values: list[str] = []
    words: list[str] = []
    places: list[str] = []
    for command in [Completed("", "", tuple(general), ()), *commands]:
        names = [name for option in command.options for name in option.names]
        words.append(f"        {_quoted(command.name)}) _deploykit_words {_quoted(' '.join(names))} ;;")
        for option in command.options:
            if option.value is not None:
                cases = "|".join(_quoted(f"{command.name} {name}") for name in option.names)
                values.append(f"        {cases}) {_bash_value(option.value)}; return ;;")
        for number, place in enumerate(command.places):
            if place.kind == WORDS:
                places.append(f"        {_quoted(f'{command.name} {number}')}) {_bash_value(place)} ;;")
    parts = {"VALUES": values, "OPTIONS": words, "PLACES": places, "COMMANDS": [command.name for command in commands]}
    text = _BASH
    for name, lines in parts.items():
        text = text.replace(f"@{name}@", (" " if name == "COMMANDS" else "\n").join(lines))
    return text


def _bash_value(value: Value) -> str:
    if value.kind == WORDS:
        return f"_deploykit_words {_quoted(' '.join(value.words))}"
    return ":" if value.kind == FILES else "compopt +o default 2>/dev/null"


_BASH = """# Completion of deploykit for bash; "deploykit completion bash" wrote it.
_deploykit_words() {
    local word
    compopt +o default 2>/dev/null
    while read -r word; do COMPREPLY+=("$word"); done < <(compgen -W "$1" -- "$cur")
}

_deploykit() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command= place=0 word before= i
    COMPREPLY=()
    if [[ $cur == "=" ]]; then
        cur=
    elif [[ $prev == "=" ]]; then
        prev=${COMP_WORDS[COMP_CWORD-2]}
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ $word != -* && $word != "=" && $before != "=" && $before != --config ]]; then
            if [[ -z $command ]]; then command=$word; elif [[ $before != -* ]]; then ((place++)); fi
        fi
        before=$word
    done
    case "$command $prev" in
@VALUES@
    esac
    if [[ $cur == -* ]]; then
        case "$command" in
@OPTIONS@
        esac
        return
    fi
    if [[ -z $command ]]; then
        _deploykit_words '@COMMANDS@'
        return
    fi
    case "$command $place" in
@PLACES@
    esac
}

complete -o default -F _deploykit deploykit
"""


def zsh(commands: Sequence[Completed], general: Sequence[Option]) -> str:
    """Return the script for zsh, a file ``_deploykit`` in a folder of ``$fpath`` or read by ``source``."""
    lines = ["#compdef deploykit", '# Completion of deploykit for zsh; "deploykit completion zsh" wrote it.', ""]
    lines += [
        "_deploykit() {",
        "    local context state state_descr line curcontext=$curcontext",
        "    typeset -A opt_args",
    ]
    lines.append("    local -a commands=(")
    lines += [f"        {_quoted(f'{each.name}:{each.summary}')}" for each in commands]
    lines += ["    )", "    _arguments -C \\"]
    lines += [f"        {spec} \\" for option in general for spec in _zsh_option(option)]
    lines += [
        "        '1: :->command' '*:: :->words'",
        "    case $state in",
        "    command) _describe command commands ;;",
    ]
    lines += ["    words)", "        case $words[1] in"]
    for command in commands:
        specs = [spec for option in command.options for spec in _zsh_option(option)]
        for number, place in enumerate(command.places, 1):
            at = "*" if command.several and number == len(command.places) else str(number)
            specs.append(_quoted(f"{at}:{place.name}:{_zsh_value(place)}"))
        lines.append(f"        {command.name}) _arguments \\")
        lines += [f"            {spec} \\" for spec in specs[:-1]] + [f"            {specs[-1]} ;;"]
    lines += ["        esac ;;", "    esac", "}", ""]
    lines += ['if [[ $funcstack[1] == _deploykit ]]; then _deploykit "$@"; else compdef _deploykit deploykit; fi', ""]
    return "\n".join(lines)


def _zsh_option(option: Option) -> Iterator[str]:
    told = re.sub(r"([\[\]:\\])", r"\\\1", option.help)
    value = "" if option.value is None else f":{option.value.name}:{_zsh_value(option.value)}"
    others = "*" if option.repeats else f"({' '.join(option.names)})"
    for name in option.names:
        long = "=" if name.startswith("--") and option.value is not None else ""
        yield _quoted(f"{others}{name}{long}[{told}]{value}")


def _zsh_value(value: Value) -> str:
    if value.kind == WORDS:
        return "(" + " ".join(re.sub(r"([*?:()\\ ])", r"\\\1", word) for word in value.words) + ")"
    return "_files" if value.kind == FILES else " "


def fish(commands: Sequence[Completed], general: Sequence[Option]) -> str:
    """Return the script for fish."""
    lines = ['# Completion of deploykit for fish; "deploykit completion fish" wrote it.']
    lines += [_fish_option("__fish_use_subcommand", option) for option in general]
    for command in commands:
        lines.append(
            f"complete -c deploykit -n __fish_use_subcommand -f -a {command.name} -d {_fish_quoted(command.summary)}"
        )
    for command in commands:
        here = f"'__fish_seen_subcommand_from {command.name}'"
        lines += [_fish_option(here, option) for option in command.options]
        if command.places and command.places[0].kind == WORDS:
            first = command.places[0].words
            lines.append(f"complete -c deploykit -n {here} -f -a {_fish_quoted(' '.join(first))}")
    return "\n".join(lines) + "\n"


def _fish_option(condition: str, option: Option) -> str:
    names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
    value = ""
    if option.value is not None:
        value = {FILES: " -r -F", NOTHING: " -x", WORDS: f" -x -a {_fish_quoted(' '.join(option.value.words))}"}[
            option.value.kind
        ]
    return f"complete -c deploykit -n {condition} {names}{value} -d {_fish_quoted(option.help)}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
