"""Workers as processes of this machine. One that dies is replaced, and what it had is computed again."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for

from deploykit.runtime.cluster.work import Attempt, Done, Task, Work, Worker
from deploykit.runtime.pipeline.kept_memory import keep_freed_memory

__all__ = ["in_processes"]

TRIES = 3  # of a task whose worker dies


def in_processes(work: Work, workers: int) -> Attempt:
    """Return what computes tasks in processes of their own, each with the model open; one worker is this process."""

    def attempt(tasks: Sequence[Task]) -> Iterator[Done]:
        if workers == 1:
            with contextlib.closing(Worker(work)) as worker:
                yield from map(worker, tasks)
            return
        left = {task.number: task for task in tasks}
        while left:
            suspects: list[Task] = []
            for done in _pool(work, workers, list(left.values()), suspects):
                del left[done.number]
                yield done
            for task in suspects:  # which of them it was shows when each has a process for itself
                del left[task.number]
                for _ in range(TRIES - 1):
                    if alone := next(_pool(work, 1, [task], []), None):
                        yield alone
                        break

    return attempt


def _pool(work: Work, workers: int, tasks: Sequence[Task], suspects: list[Task]) -> Iterator[Done]:
    """Yield what a pool of processes computes, until it has done all or one of them dies; then ``suspects`` gets the
    tasks that were on their way."""
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    pool = ProcessPoolExecutor(min(workers, len(tasks)), context, initializer=_begin, initargs=(work,))
    running: dict[Future[Done], Task] = {}
    waiting = iter(tasks)
    try:
        while True:
            while len(running) < workers and (task := next(waiting, None)):  # what only waits is no suspect
                running[pool.submit(_compute, task)] = task
            if not running:
                return
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                done = future.result()
                del running[future]
                yield done
    except BrokenProcessPool:
        suspects += running.values()
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:  # whose parts nobody waits for
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


_of_this_process: list[Work | Worker] = []  # if it is one of a pool: what it is started with, and then its worker


def _begin(work: Work) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all processes of a terminal: no traceback of each
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    _of_this_process.append(work)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)


def _compute(task: Task) -> Done:
    found = _of_this_process[0]
    if isinstance(found, Work):  # here and not at the start, where an error would end the pool without being told
        found = _of_this_process[0] = Worker(found)
    return found(task)
