"""A job by several threads: reading, the network and what follows overlap, and results come in the order of the items.

Threads are enough, because what takes time lets go of Python's lock: decoding and scaling in OpenCV, the network,
numpy and the native library. The caller's thread takes the results, and what it does with them (drawing, writing, the
score of an evaluation) overlaps with the work on later items.

What is done ahead is bounded by a number of items and batches for each worker, and by the bytes that they hold.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Generic, TypeVar, cast

from deploykit.runtime.pipeline.job import Batches, Job, Load, Skip, Unreadable, in_turn, pass_over

__all__ = ["results"]

Item = TypeVar("Item")
Out = TypeVar("Out")

AHEAD = 2  # batches for each worker: the one that it computes, and the next one
MOST_BYTES = 1 << 28  # that items ahead hold, as far as their sizes can be foreseen
LOOK = 0.5  # seconds between two looks for Ctrl-C on systems where it does not end a wait (Windows)


def results(job: Job[Item, Out], workers: int, skip: Skip | None) -> Iterator[Out]:
    """Yield the results of a job: the same values, errors and calls of ``skip`` in the same order for any number of
    workers.

    An error is raised at its place, after the results of the batches before. Then, and where the iterator is closed
    or left by Ctrl-C, what has not begun is dropped, and what has is waited for: no thread stays behind.

    Args:
        job: the work.
        workers: how many threads compute; 1: the caller's own and no other.
        skip: called, in the caller's thread, with the error of each item that cannot be read; None raises it.

    Raises:
        DeployError: an item cannot be read and ``skip`` is None, or what the job raises.
    """
    if workers == 1:
        yield from in_turn(job, skip)
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(job.loads))
        reader = ThreadPoolExecutor(1, thread_name_prefix="pipeline reader") if job.slow else None
        pool = ThreadPoolExecutor(workers, thread_name_prefix="pipeline")
        for each in (reader, pool):
            if each is not None:
                stack.callback(each.shutdown, cancel_futures=True)
        work = _Work(job, pool, reader, AHEAD * workers)
        while (done := work.next()) is not None:
            if isinstance(done, Unreadable):
                pass_over(done, skip)
                continue
            for result in done:
                work.go_on()
                yield result


class _Work(Generic[Item, Out]):
    """What is on its way: items that are read, and then batches that are computed, both in order.

    Only the caller's thread touches it: whenever it is here, it looks at what the workers have done and gives them
    more.

    Args:
        job: the work.
        pool: what reads items and computes batches.
        reader: what asks for the next item where that takes long; None: the caller's thread.
        ahead: the most batches on their way.
    """

    def __init__(
        self, job: Job[Item, Out], pool: ThreadPoolExecutor, reader: ThreadPoolExecutor | None, ahead: int
    ) -> None:
        self._job, self._pool, self._reader, self._ahead = job, pool, reader, ahead
        self._batches: Batches[Item, Out] = Batches(job)
        self._asked: Future[Load[Item] | None] | None = None
        self._items: deque[Future[Any]] = deque()
        self._runs: deque[tuple[Future[Any] | Unreadable | list[Item], int]] = deque()  # with the bytes of their items
        self._ended = False  # there are no more items
        self._held = self._largest = 0  # bytes: of the items in batches, and of a large item of late

    def next(self) -> list[Out] | Unreadable | None:
        """Wait for the next batch or unreadable item, and return its results, or itself; None: there is no more."""
        while True:
            self.go_on()
            first = self._runs[0][0] if self._runs else None
            if first is not None and not (isinstance(first, Future) and not first.done()):
                self._held -= self._runs.popleft()[1]
                if isinstance(first, Future):
                    return cast("list[Out]", first.result())
                return first if isinstance(first, Unreadable) else self._job.run(first)
            heads = (first, self._asked, self._items[0] if self._items else None)
            waited = [each for each in heads if isinstance(each, Future) and not each.done()]
            if not waited:
                return None
            wait(waited, LOOK, FIRST_COMPLETED)

    def go_on(self) -> None:
        """Take in what is done, and give the workers what they may begin."""
        self._compute()
        while not self._ended and len(self._items) < self._room():
            if self._asked is None:
                self._asked = _asked(self._job, self._reader)
            if not self._asked.done():
                return
            found, self._asked = self._asked, None
            if found.exception() is not None:
                self._items.append(found)  # which is raised at its place
                self._ended = True
            elif (load := found.result()) is None:
                self._ended = True
            else:
                self._items.append(self._pool.submit(load))
        self._compute()

    def _room(self) -> int:
        """Return how many items may be on their way to a batch: fewer where they are large, and one if nothing else is
        on its way."""
        most, least = self._ahead + self._job.batch, 0 if self._items or self._runs else 1
        return max(least, min(most, (MOST_BYTES - self._held) // self._largest)) if self._largest else most

    def _compute(self) -> None:
        """Give the workers the batches whose items are read."""
        while self._items and self._items[0].done() and len(self._runs) < self._ahead:
            first = self._items.popleft()
            if first.exception() is not None:  # nothing comes after it, and a batch that waits for more is dropped
                self._runs.append((first, 0))
                self._items.clear()
                self._batches, self._ended = Batches(self._job), True
            elif isinstance(item := first.result(), Unreadable):
                self._runs.append((item, 0))
            else:
                size = self._job.size(item)
                self._held, self._largest = self._held + size, max(size, self._largest // 2)
                self._submit(self._batches.add(item))
        if self._ended and not self._items:
            self._submit(self._batches.rest())

    def _submit(self, batches: Iterator[list[Item]]) -> None:
        for batch in batches:
            run = batch if self._job.here else self._pool.submit(self._job.run, batch)
            self._runs.append((run, sum(map(self._job.size, batch))))


def _asked(job: Job[Item, Out], reader: ThreadPoolExecutor | None) -> Future[Load[Item] | None]:
    """Ask for the load of the next item."""
    if reader is not None:
        return reader.submit(next, job.loads, None)
    found: Future[Load[Item] | None] = Future()
    try:
        found.set_result(next(job.loads, None))
    except Exception as e:
        found.set_exception(e)
    return found
