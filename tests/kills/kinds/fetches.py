"""Downloads from a server of this machine, which takes its time."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

from tests.kills.kind import PLACE, Kind
from tests.releases.web_server import Handler, QuietServer

FILES = ("new.pt", "new.pt.source.json")
MODULES = ("torch", "deploykit.models.registry", "deploykit.models.checkpoint.reader", "deploykit.releases.fetch")
SLICES, PAUSE = 20, 0.005  # of a file; seconds before each


class Slow(Handler):
    """Sends the files that the parent's ``folder`` holds, in slices, and from where a client asks for it."""

    def do_GET(self) -> None:  # noqa: N802
        """A file, or the rest of it."""
        server: Any = self.server
        body = (server.folder / Path(self.path).name).read_bytes()
        asked = self.headers.get("Range", "")
        begin = int(asked.removeprefix("bytes=").rstrip("-") or 0)
        if begin:
            span = f"bytes {begin}-{len(body) - 1}/{len(body)}"
            self._start(206, ETag='"one"', Content_Length=len(body) - begin, Content_Range=span)
        else:
            self._start(200, ETag='"one"', Content_Length=len(body))
        step = -(-len(body) // SLICES)
        for start in range(begin, len(body), step):
            self.wfile.write(body[start : start + step])
            self.wfile.flush()
            time.sleep(PAUSE)


@cache
def address() -> str:
    """The address of the server, which runs in a process of its own as long as this one does."""
    read, write = os.pipe()
    if not os.fork():
        try:
            if sys.platform == "linux":
                ctypes.CDLL(None).prctl(1, signal.SIGKILL)
            with QuietServer() as web:
                web.RequestHandlerClass = Slow
                web.folder = Path(os.environ[PLACE])  # type: ignore[attr-defined]
                os.write(write, web.address.encode())
                os.close(write)
                threading.Thread(target=web.serve_forever, args=(0.01,)).start()
                signal.pause()
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        return pipe.read()


def prepare(folder: Path) -> None:
    """Two checkpoints."""
    from tests.narrow import few_layers, write_checkpoint

    write_checkpoint(folder / "old.pt", few_layers(), seed=1)
    write_checkpoint(folder / "new.pt", few_layers(), seed=2)


def _words(old: bool) -> list[str]:
    url = f"{address()}/{'old' if old else 'new'}.pt"
    return ["fetch", "yolov7-tiny", "--url", url, "--out", "out/new.pt", "--force"]


FETCH = Kind("fetch", prepare, _words, together=[FILES], removed_first=FILES[1:], imports=MODULES)
