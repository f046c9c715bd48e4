"""Options and values that people type out of habit, and what they mean here.

They are put into the words of the command line before these are parsed, so that everything behind (defaults from a
file, messages, help) knows one name for one thing. Other names of other tools are not taken but answered with the right
one (``_suggest.py``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from deploykit.cli._suggest import is_model_file
from deploykit.errors import UsageError

ALIASES: dict[str, tuple[str, ...]] = {
    "--batch-size": ("--batch",),
    "--bf16": ("--precision", "bf16"),
    "--conf-thres": ("--conf",),
    "--fp16": ("--precision", "fp16"),
    "--fp8": ("--precision", "fp8"),
    "--half": ("--precision", "fp16"),
    "--img-size": ("--img",),
    "--imgsz": ("--img",),
    "--int8": ("--precision", "int8"),
    "--int8-keep": ("--keep",),
    "--iou-thres": ("--iou",),
    "--overwrite": ("--force",),
    "--weights": ("--model",),
}
"""Option as typed -> the words that it stands for, in commands that have the option meant and not the one typed."""

RENAMED = {"--int8-keep": "--keep"}
"""Option of an earlier version -> its name; a configuration file may still have the former."""

VALUES = {"--format": {"engine": "tensorrt", "trt": "tensorrt", "rtx": "tensorrt-rtx"}}
"""Option -> value as typed -> the value that it stands for."""

BARE = {"--dynamic": "batch"}
"""Option -> its value where it stands alone: before another option, before a model's file, or last."""

SIZES = ("--img",)
SIZE = re.compile(r"(\d+)[x×,](\d+)")


def unaliased(words: Sequence[str], options: Collection[str]) -> tuple[list[str], list[str]]:
    """Return the words with their aliases replaced, and notes on what was read in a way that could be meant otherwise.

    Args:
        words: the words behind a command; those after ``--`` are left alone.
        options: the options of the command.

    Raises:
        UsageError: an alias and another option contradict each other.
    """
    end = words.index("--") if "--" in words else len(words)
    rest, after = list(words[:end]), list(words[end:])
    _refuse_contradictions(rest, options)
    found: list[str] = []
    notes: list[str] = []
    while rest:
        name, equals, value = rest[0].partition("=")
        if name in ALIASES and name not in options and ALIASES[name][0] in options:
            rest[:1] = [*ALIASES[name], *([value] if equals else [])]
        if equals and name in (*VALUES, *SIZES) and name in options:
            rest[:1] = [name, value]
        found.append(rest.pop(0))
        if found[-1] in options:
            found += _values(found[-1], rest, notes)
    return [*found, *after], notes


def _refuse_contradictions(words: Sequence[str], options: Collection[str]) -> None:
    """Refuse ``--half --precision int8`` and ``--half --int8``."""
    fixed = {name: meant for name, meant in ALIASES.items() if len(meant) > 1 and name not in options}
    chosen: dict[str, tuple[str, str]] = {}  # option -> its value, and how that was typed
    for word, following in zip(words, [*words[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if name in fixed:
            option, meant, typed = *fixed[name], name
        elif any(name == option for option, _ in fixed.values()):
            option, meant = name, value if equals else following
            typed = f"{name} {meant}"
        else:
            continue
        before = chosen.setdefault(option, (meant, typed))
        if before[0] != meant and (before[1] in fixed or typed in fixed):
            raise UsageError(f"{before[1]} contradicts {typed}: keep one of them")


def _values(option: str, rest: list[str], notes: list[str]) -> list[str]:
    """Take the values of an option off the words that follow it, as far as they stand for others."""
    if option in BARE:
        alone = not rest or rest[0].startswith("-") or is_model_file(rest[0])
        return [BARE[option]] if alone else []
    if option in VALUES and rest and rest[0] in VALUES[option]:
        return [VALUES[option][rest.pop(0)]]
    if option in SIZES and rest and (size := SIZE.fullmatch(rest[0])):
        rest.pop(0)
        if size[1] != size[2]:
            notes.append(f"{option} {size[0]}: height {size[1]}, width {size[2]}")
        return [size[1], size[2]]
    return []
