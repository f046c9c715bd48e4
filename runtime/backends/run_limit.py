"""A time limit for the runs of a network, and the end of all runs at Ctrl-C.

A run is a call into native code that does not return before the network is done; a network with an endless loop never
is. Another thread can end it through the backend's own flag (``RunOptions.terminate`` of ONNX Runtime), which is read
between two nodes of the graph: one long node is not interrupted.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Protocol

__all__ = ["RunFlag", "RunLimit", "interrupts_end_runs"]

MOST_TICK, LEAST_TICK = 0.25, 0.005  # seconds between two looks at the clock


class RunFlag(Protocol):
    """The options of one run, with the flag that ends it."""

    terminate: bool


_running: dict[int, RunFlag] = {}  # all runs of the process


class RunLimit:
    """Ends runs that take longer than ``seconds``; None: only Ctrl-C does.

    One thread looks at the clock while runs with a limit are on their way, and ends with the last of them.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        self._deadlines: dict[int, tuple[float, RunFlag]] = {}
        self._lock = threading.Lock()
        self._watches = False

    @contextlib.contextmanager
    def watch(self, run: RunFlag) -> Iterator[None]:
        """Set the run's flag if the block takes longer than the limit."""
        _running[id(run)] = run
        try:
            if self.seconds is None:
                yield
                return
            with self._lock:
                self._deadlines[id(run)] = (time.monotonic() + self.seconds, run)
                if not self._watches:
                    self._watches = True
                    threading.Thread(target=self._look, args=(self.seconds,), daemon=True, name="run limit").start()
            try:
                yield
            finally:
                with self._lock:
                    del self._deadlines[id(run)]
        finally:
            del _running[id(run)]

    def _look(self, seconds: float) -> None:
        tick = min(max(seconds / 20, LEAST_TICK), MOST_TICK)
        while True:
            time.sleep(tick)
            with self._lock:
                if not self._deadlines:
                    self._watches = False
                    return
                for deadline, run in self._deadlines.values():
                    if time.monotonic() > deadline:
                        run.terminate = True


@contextlib.contextmanager
def interrupts_end_runs() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the runs on their way while the block lasts; only the main thread can have that.

    Python handles a signal in the main thread, which cannot while it is in native code. The signal's number is written
    to a socket at once, and a thread that reads it ends the runs; then KeyboardInterrupt is raised as always.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def end_runs() -> None:
        while caught := reader.recv(1):
            if caught[0] in (signal.SIGINT, signal.SIGTERM):
                for run in list(_running.values()):
                    run.terminate = True

    thread = threading.Thread(target=end_runs, daemon=True, name="interrupts")
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()
        thread.join()
        reader.close()
