"""The command line parses and prints; every sub-command is one file with one API call behind it.

A file ``cli/<name>.py`` defines ``add_arguments(parser)`` and ``run(args) -> int``. It is imported only when its
command is used, so that ``deploykit --help`` stays fast.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from deploykit.cli._display import notes_on_stderr
from deploykit.errors import DeployError, import_errors_explained
from deploykit.version import __version__

COMMANDS = {
    "export": "turn a checkpoint into an ONNX file and TensorRT engines that are verified equal to it",
    "predict": "run a model on images, folders, videos or a camera",
    "bench": "measure how long a model takes, alone and end to end",
    "eval": "score a model on annotated images: average precision and recall",
    "compare": "check that two models give the same outputs",
    "inspect": "describe a checkpoint or an exported model without running it",
    "models": "list the models that can be built by name",
    "fetch": "download a released checkpoint, and verify its SHA-256 where one is known",
    "create": "write a checkpoint with seeded random weights",
    "plugins": "build, describe or check the native libraries (C++, CUDA)",
}

INTERRUPTED = 130  # a shell's exit code for a program that Ctrl-C ended
BROKEN_PIPE = 141  # ... and for one whose reader closed the pipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code of the process (see :mod:`deploykit.errors`)."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = command_parser(words)
    args = parser.parse_args(words)
    try:
        with import_errors_explained(), notes_on_stderr():
            return int(args.run(args))
    except DeployError as e:
        if args.traceback:
            raise
        print(f"deploykit: {_one_line(e)}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt as e:
        print(f"deploykit: interrupted{'; ' if str(e) else ''}{e}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) closed the pipe; Python would report that again when it flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def command_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of a command line; the arguments of the command that ``words`` name are in it, of the others not."""
    parser = argparse.ArgumentParser(
        prog="deploykit",
        description="From a trained vision checkpoint to a verified ONNX file, and the runtime that serves it.",
        epilog="deploykit COMMAND --help explains one command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"deploykit {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    command = next((word for word in words if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        sub.add_argument("--traceback", action="store_true", help="show the traceback of an error")
        if name == command:
            module = import_module(f"deploykit.cli.{name}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def _one_line(error: DeployError) -> str:
    return " ".join(str(error).split())
