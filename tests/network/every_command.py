"""Runs the commands that stay on this machine, and the Python names, in one process; its audit hook writes down calls.

    python every_command.py CALLS CODE

``CALLS`` is the file of the calls. ``CODE`` is Python in which ``run`` is a command of deploykit.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

EVENTS = {
    "socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname",
    "socket.gethostbyaddr", "urllib.Request", "http.client.connect", "ftplib.connect", "smtplib.connect",
}  # fmt: skip

calls = Path(sys.argv[1])


def hook(event: str, args: tuple[Any, ...]) -> None:
    """Write down what reaches for a network; sockets of this machine's file system do not."""
    if event in EVENTS and not (event.startswith("socket.") and getattr(args[0], "family", None) == 1):
        with calls.open("a") as file:
            file.write(f"{event} {args!r}\n")


def run(*words: str) -> None:
    """Run a command of deploykit in this process."""
    from deploykit.cli import main

    print("$", *words, flush=True)
    code = main(list(words))
    assert code == 0, (words, code)


if __name__ == "__main__":
    sys.addaudithook(hook)
    exec(compile(sys.argv[2], "the test", "exec"), {"run": run, "__name__": "the_test"})
