"""The command line parses and prints; every sub-command is one file with one API call behind it.

A file ``cli/<name>.py`` defines ``add_arguments(parser)`` and ``run(args) -> int``. It is imported only when its
command is used, so that ``deploykit --help`` stays fast.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import FrameType

from deploykit.cli._display import every_text_printable, notes_on_stderr, printable
from deploykit.errors import (
    DeployError,
    DiskFullError,
    OutOfMemoryError,
    UnexpectedError,
    import_errors_explained,
)
from deploykit.version import __version__

COMMANDS = {
    "export": "turn a checkpoint into an ONNX file and TensorRT engines that are verified equal to it",
    "predict": "run a model on images, folders, videos or a camera",
    "bench": "measure how long a model takes, alone and end to end",
    "eval": "score a model on annotated images: average precision and recall",
    "compare": "check that two models give the same outputs",
    "inspect": "describe a checkpoint or an exported model",
    "models": "list the models that can be built by name",
    "fetch": "download a released checkpoint, and verify its SHA-256 where one is known",
    "create": "write a checkpoint with seeded random weights",
    "plugins": "build, describe or check the native libraries (C++, CUDA)",
}

INTERRUPTED = 130  # a shell's exit code for a program that Ctrl-C ended
BROKEN_PIPE = 141  # ... for one whose reader closed the pipe
TERMINATED = 143  # ... and for one that SIGTERM ended

NO_MEMORY = re.compile("insufficient memory|can't allocate memory|failed to allocate|bad_alloc", re.IGNORECASE)
"""What OpenCV, torch and C++ libraries say instead of raising MemoryError."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a container or a batch system sends it to end a program: the same clean-up as after Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code of the process (see :mod:`deploykit.errors`)."""
    with every_text_printable():
        return _run(list(sys.argv[1:] if argv is None else argv))


def _run(words: list[str]) -> int:
    parser = command_parser(words)
    args = parser.parse_args(words)
    from deploykit.runtime.backends.run_limit import interrupts_end_runs

    try:
        with import_errors_explained(), notes_on_stderr(), _sigterm_raises(), interrupts_end_runs():
            code = int(args.run(args))
            sys.stdout.flush()  # here, where a full disk is still an error with a message
            return code
    except KeyboardInterrupt as e:
        terminated = isinstance(e, Terminated)
        said = "terminated" if terminated else "interrupted"
        print(f"deploykit: {said}{'; ' if str(e) else ''}{e}", file=sys.stderr)
        return TERMINATED if terminated else INTERRUPTED
    except BrokenPipeError:  # the reader (head, less) closed the pipe
        _drop_stdout()
        return BROKEN_PIPE
    except Exception as e:
        if args.traceback:
            raise
        error = e if isinstance(e, DeployError) else _explained(e)
        print(f"deploykit: {_one_line(error)}", file=sys.stderr)
        if isinstance(e, OSError):
            _drop_stdout()
        return error.exit_code


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise :class:`Terminated` in the main thread while the context lasts, if nothing else handles it."""
    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _drop_stdout() -> None:
    """Discard what standard output still holds; Python would report at exit that it cannot be written."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explained(error: Exception) -> DeployError:
    """Return the error for an exception that is not of the tree, which deploykit did not expect."""
    if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
        return OutOfMemoryError(
            "there is not enough memory for this model and this input: take smaller images or a smaller batch, or free "
            "some memory; --traceback shows where it ran out"
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return DiskFullError(f"cannot write {error.filename or 'the output'}: {error.strerror}; free some space")
    kind, frames = type(error), traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(str(Path(__file__).parents[1]))]
    frame = ours[-1] if len(ours) > 1 else frames[-1]  # the first is main
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return UnexpectedError(
        f"unexpected {module}{kind.__name__}{f': {error}' if str(error) else ''} "
        f"({Path(frame.filename).name}:{frame.lineno}): a fault in deploykit or in a library that it uses; "
        "--traceback shows where"
    )


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
    return printable(" ".join(str(error).split()))
