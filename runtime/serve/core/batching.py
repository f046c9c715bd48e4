"""Batches across requests: what waits for one network is run together, in the order in which it came.

A request that is alone never waits. One waits only while others are on their way (their images are being read) and one
worker is left, and at most for the window. A request that is given up before its batch begins is not computed, and a
run that nobody waits for any more is ended, where its backend can end runs. Where a batch fails, its members run one by
one, so that nobody suffers for another one's image.

Everything but the runs themselves happens in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from dataclasses import dataclass
from typing import Any

from deploykit.runtime.backends.run_limit import RunEnd

__all__ = ["Batcher", "Computed", "Run", "Ticket"]

Run = Callable[[list[Any]], list[Any]]
"""Computes items together, in a thread, and returns one value for each."""


@dataclass(frozen=True)
class Computed:
    """What came of an item.

    Attributes:
        value: the item's value.
        queue_ms: milliseconds that it waited.
        run_ms: milliseconds that its batch ran.
        batch: the weight of its batch.
    """

    value: Any
    queue_ms: float
    run_ms: float
    batch: int


@dataclass(eq=False)
class _Waiting:
    kind: Hashable
    run: Run
    item: Any
    weight: int
    came: float
    done: asyncio.Future[Computed]


class Ticket:
    """A request that is on its way to the queue, and for which others may wait."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher: Batcher | None = batcher
        batcher.coming += 1

    def used(self) -> None:
        """Tell that nobody needs to wait for it any more."""
        batcher, self._batcher = self._batcher, None
        if batcher is not None:
            batcher.coming -= 1
            batcher.go_on()


class Batcher:
    """Runs what is given to it in batches, by several workers.

    Args:
        pool: the threads that run batches.
        workers: how many batches run at the same time.
        most: the largest weight of a batch of several items.
        window: seconds that an item waits for others that are coming.
    """

    def __init__(self, pool: Executor, workers: int, most: int, window: float) -> None:
        self.coming = 0
        self.sizes: Counter[int] = Counter()
        self.sizes_ms: defaultdict[int, float] = defaultdict(float)
        self.workers = workers
        self._pool, self._most, self._window = pool, most, window
        self._waiting: deque[_Waiting] = deque()
        self._running = 0
        self._alarm: asyncio.TimerHandle | None = None
        self._ends: set[RunEnd] = set()

    @property
    def waiting(self) -> int:
        """How many items wait."""
        return len(self._waiting)

    @contextlib.contextmanager
    def expected(self) -> Iterator[Ticket]:
        """Announce a request while the context lasts, or until its ticket is used."""
        ticket = Ticket(self)
        try:
            yield ticket
        finally:
            ticket.used()

    async def compute(self, run: Run, item: Any, kind: Hashable, *, weight: int = 1, ticket: Ticket) -> Computed:
        """Compute an item together with others of the same kind.

        Args:
            run: what computes items of this kind.
            item: the item.
            kind: items of equal kinds may share a batch.
            weight: how much of a batch's limit the item takes.
            ticket: the request's.

        Raises:
            Exception: what ``run`` raises for this item alone.
        """
        loop = asyncio.get_running_loop()
        mine = _Waiting(kind, run, item, weight, loop.time(), loop.create_future())
        self._waiting.append(mine)
        ticket.used()
        return await mine.done

    def end(self) -> None:
        """End the runs that are on their way, whoever waits for them."""
        for each in self._ends:
            each.end()

    def go_on(self) -> None:
        """Start what can run now."""
        loop = asyncio.get_running_loop()
        while self._running < self.workers:
            while self._waiting and self._waiting[0].done.done():  # given up
                self._waiting.popleft()
            if not self._waiting:
                return
            first = self._waiting[0]
            batch = self._gather(first)
            end, last = first.came + self._window, self._running == self.workers - 1
            if last and self.coming and loop.time() < end and sum(each.weight for each in batch) < self._most:
                if self._alarm is None:
                    self._alarm = loop.call_at(end, self._woken)
                return
            for each in batch:
                self._waiting.remove(each)
            self._running += 1
            self._start(batch, [])

    def _woken(self) -> None:
        self._alarm = None
        self.go_on()

    def _gather(self, first: _Waiting) -> list[_Waiting]:
        """Return what runs with the first item: no more than each worker's share of what waits."""
        alike = [each for each in self._waiting if each.kind == first.kind and not each.done.done()]
        share = -(-sum(each.weight for each in alike) // self.workers)
        batch, weight = [first], first.weight
        for each in alike[1:]:
            if weight + each.weight > min(self._most, max(share, 1)):
                break
            batch.append(each)
            weight += each.weight
        return batch

    def _start(self, batch: list[_Waiting], later: list[_Waiting]) -> None:
        """Run a batch in a thread, and then what is left of one that failed, each item by itself."""
        loop = asyncio.get_running_loop()
        start, end = loop.time(), RunEnd()

        def look(_: object) -> None:
            if all(each.done.cancelled() for each in batch):
                end.end()

        for each in batch:
            each.done.add_done_callback(look)
        self._ends.add(end)
        try:
            job = self._pool.submit(end.call, batch[0].run, [each.item for each in batch])
        except RuntimeError as e:  # the pool is shut down
            job = Future()
            job.set_exception(e)

        def ended(done: Future[list[Any]]) -> None:
            self._ends.discard(end)
            self._ended(batch, later, done, start)

        def tell(done: Future[list[Any]]) -> None:  # not of job, which would hold itself and all images of the batch
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(ended, done)

        job.add_done_callback(tell)

    def _ended(self, batch: list[_Waiting], later: list[_Waiting], job: Future[list[Any]], start: float) -> None:
        """Give the members of a batch their values, or its error to the only one."""
        error = CancelledError() if job.cancelled() else job.exception()
        if error is None:
            self._give(batch, job.result(), start)
        elif len(batch) > 1:
            later = batch
        elif not batch[0].done.done():
            batch[0].done.set_exception(error)
        later = [each for each in later if not each.done.done()]
        if later:
            self._start(later[:1], later[1:])
            return
        self._running -= 1
        self.go_on()

    def _give(self, batch: list[_Waiting], values: list[Any], start: float) -> None:
        weight, ms = sum(each.weight for each in batch), 1e3 * (asyncio.get_running_loop().time() - start)
        self.sizes[weight] += 1
        self.sizes_ms[weight] += ms
        for each, value in zip(batch, values, strict=True):
            if not each.done.done():
                each.done.set_result(Computed(value, 1e3 * (start - each.came), ms, weight))
