"""The command line parses and prints; every sub-command is one file with one API call behind it.

A file ``cli/<name>.py`` defines ``add_arguments(parser)`` and ``run(args) -> int``. It is imported only when its
command is used, so that ``deploykit --help`` stays fast.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import platform
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from deploykit.cli._commands import COMMANDS, command_parser
from deploykit.cli._config import with_config
from deploykit.cli._display import every_text_printable, note, notes_on_stderr, print_line, printable
from deploykit.errors import (
    DeployError,
    DiskFullError,
    OutOfMemoryError,
    UnexpectedError,
    import_errors_explained,
)
from deploykit.version import __version__

LOG = logging.getLogger(__name__)

__all__ = ["COMMANDS", "command_parser", "main"]

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
    if not words:
        print(parser.format_help(), end="")
        return 0
    try:
        words, notes = parser.unaliased(words)
        configured = with_config(parser, words)
        args = parser.parse_args(configured.words)
    except Exception as e:
        if isinstance(e, DeployError):
            return _failed(e)
        if "--traceback" in words:
            raise
        return _failed(_explained(e))
    began = time.perf_counter()
    from deploykit.runtime.backends.run_limit import interrupts_end_runs

    try:
        with import_errors_explained(), notes_on_stderr(args.level), _sigterm_raises(), interrupts_end_runs():
            LOG.debug("deploykit %s, Python %s, %s", __version__, platform.python_version(), platform.platform())
            for text in (*notes, *configured.notes):
                note(text)
            code = int(args.run(args))
            LOG.debug("%s ended with %d after %.2f s", args.command, code, time.perf_counter() - began)
            sys.stdout.flush()  # here, where a full disk is still an error with a message
            return code
    except KeyboardInterrupt as e:
        terminated = isinstance(e, Terminated)
        said = "terminated" if terminated else "interrupted"
        print_line(f"deploykit: {said}{'; ' if str(e) else ''}{e}", sys.stderr)
        return TERMINATED if terminated else INTERRUPTED
    except BrokenPipeError:  # the reader (head, less) closed the pipe
        _drop_stdout()
        return BROKEN_PIPE
    except Exception as e:
        if args.traceback:
            raise
        error = e if isinstance(e, DeployError) else _explained(e)
        if isinstance(e, OSError):
            _drop_stdout()
        return _failed(error)


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
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
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


def _failed(error: DeployError) -> int:
    """Print an error as one line, which ends with where its exit code is explained, and return that code."""
    print_line(f"deploykit: {printable(' '.join(str(error).split()))} [deploykit help {error.exit_code}]", sys.stderr)
    return error.exit_code
