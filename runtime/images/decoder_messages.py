"""What libjpeg prints about damaged data while OpenCV decodes: its only word about them.

It prints to the error stream of the process, which can only be redirected for all threads and child processes at once.
So nothing is redirected unless the program says that it may be (:func:`listen_to_decoders`): the command line does, a
library must not. Without it, :mod:`deploykit.runtime.images.headers.jpeg` alone judges.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator

__all__ = ["decoder_messages", "jpeg_damage", "listen_to_decoders"]

SPARE = 64  # bytes between the end of an image and its end marker that some cameras leave
ERROR_STREAM = 2
OURS = "deploykit: "  # what the command itself prints meanwhile, in another thread, and may be about a file NAME.JPEG


class _Listener:
    """The file to which the error stream is redirected while an image is decoded; -1: nobody listens."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.number = -1


_listener = _Listener()


@contextlib.contextmanager
def listen_to_decoders() -> Iterator[None]:
    """Let decoders be listened to while the context lasts, in a process whose error stream belongs to the caller."""
    with contextlib.ExitStack() as stack:
        if _listener.number < 0:
            with contextlib.suppress(OSError):  # without a place for a temporary file nobody listens
                _listener.number = stack.enter_context(tempfile.TemporaryFile()).fileno()
                stack.callback(setattr, _listener, "number", -1)
        yield


@contextlib.contextmanager
def decoder_messages() -> Iterator[list[str]]:
    """Yield a list that holds, after the context, the lines that libjpeg printed; empty where nobody may listen."""
    lines: list[str] = []
    if _listener.number < 0:
        yield lines
        return
    with _listener.lock:
        try:
            saved = os.dup(ERROR_STREAM)
        except OSError:  # there is no error stream
            yield lines
            return
        if sys.stderr is not None:
            sys.stderr.flush()
        os.dup2(_listener.number, ERROR_STREAM)
        try:
            yield lines
        finally:
            os.dup2(saved, ERROR_STREAM)
            os.close(saved)
            lines += _printed(_listener.number)


def _printed(file: int) -> list[str]:
    """Return what was printed, and print again what is not libjpeg's."""
    size = os.fstat(file).st_size
    if not size:
        return []
    text = os.pread(file, size, 0).decode(errors="replace")
    os.ftruncate(file, 0)
    os.lseek(file, 0, os.SEEK_SET)
    lines = text.splitlines(keepends=True)
    own = [line for line in lines if "JPEG" in line and not line.startswith(OURS)]
    others = "".join(line for line in lines if line not in own)
    if others:
        os.write(ERROR_STREAM, others.encode(errors="replace"))
    return [line.strip() for line in own]


def jpeg_damage(messages: list[str]) -> str:
    """Return the first of libjpeg's messages that means a damaged image; empty: there is none."""
    for message in messages:
        if not message.startswith(("Corrupt JPEG data", "Premature end of JPEG")):
            continue
        spare = re.search(r"(\d+) extraneous bytes", message)
        if spare is None or int(spare[1]) > SPARE:
            return f"libjpeg says: {message}"
    return ""
