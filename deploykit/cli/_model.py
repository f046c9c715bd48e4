"""The model of a command, which is its first word or the value of an option; and the words after it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from deploykit.cli._suggest import is_model_file
from deploykit.errors import UsageError

STDIN = "-"  # as a source: standard input
MORE = "more"  # the parsed arguments' name of the words after the model


def add_model(
    parser: argparse.ArgumentParser, meaning: str, *, also: Sequence[str] = (), metavar: str = "MODEL"
) -> None:
    """Declare the model of a command: its first word, or ``--model`` and the other names in ``also``."""
    parser.add_argument("model", nargs="?", metavar=metavar, help=meaning)
    parser.add_argument(
        "--model", *also, dest="named_models", action="append", metavar="FILE", help=f"the same as {metavar}"
    )


def add_sources(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Declare the sources of a command: the words after its model, and ``--source``."""
    parser.add_argument(MORE, nargs="*", metavar="SOURCE", help=meaning)
    parser.add_argument("--source", nargs="+", action="extend", metavar="SOURCE", help="the same as SOURCE")


def model_of(args: argparse.Namespace) -> str:
    """Return the model that was typed.

    Raises:
        UsageError: none was, or more than one.
    """
    return _model_and_words(args)[0]


def sources_of(args: argparse.Namespace) -> list[str]:
    """Return the sources that were typed: first those without an option.

    Raises:
        UsageError: there is none, or no model.
    """
    model, words = _model_and_words(args)
    sources = [*words, *(args.source or ())]
    if not sources:
        raise UsageError(f"name what {model} is run on after it: an image, a folder, a video or a camera number")
    return sources


def _model_and_words(args: argparse.Namespace) -> tuple[str, list[str]]:
    named: list[str] = args.named_models or []
    words: list[str] = ([] if args.model is None else [args.model]) + getattr(args, MORE, [])
    takes_words = hasattr(args, MORE)
    # After --model, the first word of predict is a source, unless it is plainly another model.
    first_is_model = bool(words) and not (named and takes_words and not is_model_file(words[0]))
    models = [*words[:first_is_model], *named]
    if len(models) > 1:
        raise UsageError(f"one model was expected, got {len(models)}: {', '.join(models)}")
    if not models:
        raise UsageError(_missing(args))
    return models[0], words[first_is_model:]


def _missing(args: argparse.Namespace) -> str:
    swallowed = [word for word in getattr(args, "source", None) or () if is_model_file(word)]
    if swallowed:
        return f"no model was given: {swallowed[-1]} was read as a value of --source; put the model first"
    return f"no model was given: name it first, as in deploykit {args.command} MODEL, or with --model MODEL"
