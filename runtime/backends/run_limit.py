"""What ends the runs of a network before they are done: a time limit, whoever no longer waits for them, and Ctrl-C.

A run is a call into native code that does not return before the network is done; a network with an endless loop never
is. Another thread can end it through the backend's own flag (``RunOptions.terminate`` of ONNX Runtime), which is read
between two nodes of the graph: one long node is not interrupted.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal, ParamSpec, Protocol, TypeVar

from deploykit.runtime.backends.forks import tell_forks

__all__ = ["RunEnd", "RunFlag", "RunLimit", "WatchedRun", "interrupts_end_runs"]

MOST_TICK, LEAST_TICK = 0.25, 0.005  # seconds between two looks at the clock

LEAVE = 5.0  # seconds that runs of daemon threads may take to end when the interpreter does

P = ParamSpec("P")
T = TypeVar("T")


class RunFlag(Protocol):
    """The options of one run, with the flag that ends it."""

    terminate: bool


class WatchedRun:
    """A run on its way.

    Attributes:
        ended_by: what ended it; empty: nothing did.
    """

    def __init__(self, flag: RunFlag) -> None:
        self.ended_by: Literal["", "limit", "caller", "signal", "exit"] = ""
        self._flag = flag

    def end(self, by: Literal["limit", "caller", "signal", "exit"]) -> None:
        """End it; the first reason counts."""
        self.ended_by = self.ended_by or by
        self._flag.terminate = True


_running: dict[int, WatchedRun] = {}  # all runs of the process
_here = threading.local()  # .end: the RunEnd of the calls of this thread


class RunEnd:
    """Ends the runs that are made through :meth:`call`, those on their way and those that would follow.

    Any thread may call :meth:`end`, at any time. Only ONNX Runtime can end a run; with other backends it does nothing.
    """

    def __init__(self) -> None:
        self._runs: dict[int, WatchedRun] = {}
        self._ended = False

    def call(self, work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Return what ``work`` gives, whose runs in this thread can be ended.

        Raises:
            BackendError: a run was ended. Else what ``work`` raises.
        """
        before = getattr(_here, "end", None)
        _here.end = self
        try:
            return work(*args, **named)
        finally:
            _here.end = before

    def end(self) -> None:
        """End the runs."""
        self._ended = True
        for run in list(self._runs.values()):
            run.end("caller")

    @contextlib.contextmanager
    def _holding(self, run: WatchedRun) -> Iterator[None]:
        self._runs[id(run)] = run
        if self._ended:  # asked after the run is known, so that none comes in between
            run.end("caller")
        try:
            yield
        finally:
            del self._runs[id(run)]


class RunLimit:
    """Ends runs that take longer than ``seconds``; None: only :class:`RunEnd` and Ctrl-C do.

    One thread looks at the clock while runs with a limit are on their way, and ends with the last of them.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        self.forked()
        tell_forks(self)

    def forked(self) -> None:
        """Know of no run: in a forked process, which has no other thread, none is on its way."""
        self._deadlines: dict[int, tuple[float, WatchedRun]] = {}
        self._lock = threading.Lock()
        self._watches = False

    @contextlib.contextmanager
    def watch(self, flag: RunFlag) -> Iterator[WatchedRun]:
        """Set the run's flag if the block takes longer than the limit, or nobody waits for it any more."""
        run = WatchedRun(flag)
        end: RunEnd | None = getattr(_here, "end", None)
        _running[id(run)] = run  # before the look at whether the interpreter ends, which looks at it in turn
        if _leaving.is_set():
            _running.pop(id(run))
            _stay()
        try:
            with contextlib.nullcontext() if end is None else end._holding(run), self._limited(run):
                yield run
        finally:
            _running.pop(id(run), None)
            _stay()

    @contextlib.contextmanager
    def _limited(self, run: WatchedRun) -> Iterator[None]:
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
                self._deadlines.pop(id(run), None)

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
                        run.end("limit")


_wakeups: list[int] = []  # the sockets that signals are written to


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
    _wakeups.append(writer.fileno())

    def end_runs() -> None:
        while caught := reader.recv(1):
            if caught[0] in (signal.SIGINT, signal.SIGTERM):
                for run in list(_running.values()):
                    run.end("signal")

    thread = threading.Thread(target=end_runs, daemon=True, name="interrupts")
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        _wakeups.remove(writer.fileno())
        writer.close()
        thread.join()
        reader.close()


_leaving = threading.Event()  # the interpreter ends


def _stay() -> None:
    """Keep a daemon thread where it is once the interpreter ends.

    Python ends such a thread wherever it next asks for the interpreter. In native code that ends the whole process with
    an abort; here it is harmless.
    """
    while _leaving.is_set() and threading.current_thread().daemon:
        time.sleep(3600)


def _leave() -> None:
    """End the runs of daemon threads, before the interpreter ends while they are in native code."""
    _leaving.set()
    until = time.monotonic() + LEAVE
    while _running and time.monotonic() < until:
        for run in list(_running.values()):
            run.end("exit")
        time.sleep(LEAST_TICK)


atexit.register(_leave)


def _forked() -> None:
    """Forget the runs of threads that are not in a forked process, and let its signals end no run of its parent's."""
    _running.clear()
    if _wakeups:
        found = signal.set_wakeup_fd(-1)
        if found not in _wakeups:
            signal.set_wakeup_fd(found)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
