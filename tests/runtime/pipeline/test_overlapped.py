"""A job by several threads gives what one thread gives: the same results, errors and calls, in the same order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import ImageError
from deploykit.runtime.pipeline import overlapped
from deploykit.runtime.pipeline.job import Job, Load, Unreadable
from deploykit.runtime.pipeline.overlapped import results

Event = tuple[str, object]


@dataclass(frozen=True)
class Item:
    """An item of a made-up source; ``fails`` where: ``read``, ``load``, ``run``, ``source`` or nowhere."""

    number: int
    kind: int = 0
    bytes: int = 1
    fails: str = ""
    pause: float = 0.0


@dataclass
class Source:
    """Makes jobs of items, and watches what they do."""

    items: list[Item]
    batch: int = 1
    slow: bool = False
    here: bool = False
    asked: int = 0
    most_at_once: int = 0
    closed: bool = False
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def job(self) -> Job[Item, tuple[int, tuple[int, ...]]]:
        return Job(
            self._loads(), self._run, self.batch, lambda a, b: a.kind == b.kind, lambda i: i.bytes, self.slow, self.here
        )

    def _loads(self) -> Generator[Load[Item]]:
        try:
            for item in self.items:
                self.asked += 1
                if item.fails == "source":
                    raise ImageError(f"source {item.number}")
                yield partial(self._load, item)
        finally:
            self.closed = True

    def _load(self, item: Item) -> Item | Unreadable:
        time.sleep(item.pause)
        if item.fails == "load":
            raise ImageError(f"load {item.number}")
        return Unreadable(ImageError(f"read {item.number}")) if item.fails == "read" else item

    def _run(self, batch: list[Item]) -> list[tuple[int, tuple[int, ...]]]:
        assert not self.here or threading.current_thread() is threading.main_thread()
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        time.sleep(max(item.pause for item in batch))
        with self._lock:
            self._now -= 1
        if failed := [item.number for item in batch if item.fails == "run"]:
            raise ImageError(f"run {failed}")
        together = tuple(item.number for item in batch)
        return [(item.number, together) for item in batch]


def _events(source: Source, workers: int, *, tells: bool, stop: int | None = None) -> list[Event]:
    """What a caller sees, until it has taken ``stop`` results."""
    seen: list[Event] = []
    told = (lambda error: seen.append(("skip", str(error)))) if tells else None
    found = results(source.job(), workers, told)
    try:
        for result in found:
            seen.append(("result", result))
            if len(seen) == stop:
                break
    except ImageError as e:
        seen.append(("error", str(e)))
    assert isinstance(found, Generator)
    found.close()
    return seen


@st.composite
def sources(draw: st.DrawFn) -> Callable[[], Source]:
    """Sources with failures, sizes, kinds and durations of any kind."""
    fails = st.sampled_from(["", "", "", "", "", "", "read", "read", "load", "run", "source"])
    item = st.tuples(
        st.integers(0, 1), st.sampled_from([1, 1, 10, 200]), fails, st.sampled_from([0.0, 0.0, 0.001, 0.003])
    )
    items = [Item(n, *values) for n, values in enumerate(draw(st.lists(item, max_size=24)))]
    batch, slow, here = draw(st.integers(1, 5)), draw(st.booleans()), draw(st.booleans())
    return lambda: Source(items, batch, slow, here)


@settings(max_examples=60)
@given(sources(), st.integers(2, 6), st.booleans(), st.sampled_from([None, 1, 5]))
def test_any_number_of_workers_gives_the_same(
    make: Callable[[], Source], workers: int, tells: bool, stop: int | None
) -> None:
    before, most = threading.active_count(), overlapped.MOST_BYTES
    overlapped.MOST_BYTES = 100  # type: ignore[misc]  # so that sizes matter
    try:
        source = make()
        assert _events(source, workers, tells=tells, stop=stop) == _events(make(), 1, tells=tells, stop=stop)
    finally:
        overlapped.MOST_BYTES = most  # type: ignore[misc]
    assert threading.active_count() == before
    assert source.closed or not source.asked


def test_runs_overlap_and_no_more_than_asked_for() -> None:
    source = Source([Item(n, pause=0.005) for n in range(40)])
    assert len(list(results(source.job(), 3, None))) == 40
    assert source.most_at_once == 3


@pytest.mark.parametrize("slow", [False, True])
def test_what_is_done_ahead_is_bounded(slow: bool) -> None:
    source = Source([Item(n) for n in range(1000)], batch=4, slow=slow)
    found = results(source.job(), 2, None)
    for taken, _ in enumerate(found, start=1):
        time.sleep(0.0005)
        ahead = 2 * overlapped.AHEAD * 4 + overlapped.AHEAD * 2 + 4 + 1 + 4  # batches, items, what waits, what is asked
        assert source.asked <= taken + ahead
    assert taken == source.asked == 1000


def test_large_items_are_few_at_a_time() -> None:
    source = Source([Item(n, bytes=overlapped.MOST_BYTES) for n in range(50)])
    for taken, _ in enumerate(results(source.job(), 4, None), start=1):
        if taken > 10:  # the first sizes are not known before they are read
            assert source.asked <= taken + 2


def test_a_run_that_lasts_does_not_hold_back_what_is_done() -> None:
    """Items that are not there yet make nobody wait for a result that is."""
    gate = threading.Event()

    def loads() -> Iterator[Load[int]]:
        yield lambda: 0
        yield lambda: (gate.wait(10), 1)[1]

    job = Job((each for each in loads()), lambda batch: batch, 1, lambda _, __: True, lambda _: 1)
    found = results(job, 2, None)
    assert next(found) == 0
    assert not gate.is_set()
    gate.set()
    assert list(found) == [1]


def test_an_interrupt_of_the_caller_leaves_no_thread() -> None:
    source = Source([Item(n, pause=0.002) for n in range(100)])
    before = threading.active_count()
    found = results(source.job(), 4, None)
    next(found)
    assert threading.active_count() > before
    assert isinstance(found, Generator)
    with pytest.raises(KeyboardInterrupt):
        found.throw(KeyboardInterrupt())
    assert threading.active_count() == before
    assert source.closed
    assert source.asked < 30
