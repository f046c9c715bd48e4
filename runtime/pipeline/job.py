"""A job: what is loaded, what is run together, and how; and its plain run, one step after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from deploykit.errors import DeployError

__all__ = ["Batches", "Job", "Load", "Skip", "Unreadable", "in_turn", "pass_over"]

Item = TypeVar("Item")
Out = TypeVar("Out")

Skip = Callable[[DeployError], None]
"""Called with the error of an item that cannot be read, which is then left out."""


@dataclass(frozen=True)
class Unreadable:
    """What a load returns for an item that cannot be read."""

    error: DeployError


Load = Callable[[], Item | Unreadable]
"""Reads and prepares one item."""


@dataclass(frozen=True, eq=False)
class Job(Generic[Item, Out]):
    """The work on a source.

    Attributes:
        loads: gives, for each item of the source, a function that reads and prepares it. Functions may run at the same
            time; the iterator itself is never asked by two threads at once.
        run: computes a batch of items, and returns one result for each.
        batch: the most items in a batch.
        alike: whether two items may share a batch.
        size: the bytes that an item holds.
        slow: whether asking ``loads`` for the next function takes long, as where it decodes a video.
        here: whether ``run`` may be called by the caller's thread alone; else several threads call it at the same time.
    """

    loads: Generator[Load[Item]]
    run: Callable[[list[Item]], list[Out]]
    batch: int
    alike: Callable[[Item, Item], bool]
    size: Callable[[Item], int]
    slow: bool = False
    here: bool = False


class Batches(Generic[Item, Out]):
    """Collects items that follow each other and are alike. What is collected depends on the items alone, and never on
    when they come."""

    def __init__(self, job: Job[Item, Out]) -> None:
        self._job = job
        self._waiting: list[Item] = []

    def add(self, item: Item) -> Iterator[list[Item]]:
        """Take the next item, and yield the batches that are complete with it."""
        if self._waiting and not self._job.alike(self._waiting[0], item):
            yield from self.rest()
        self._waiting.append(item)
        if len(self._waiting) == self._job.batch:
            yield from self.rest()

    def rest(self) -> Iterator[list[Item]]:
        """Yield what waits for further items, if anything does."""
        if self._waiting:
            batch, self._waiting = self._waiting, []
            yield batch


def in_turn(job: Job[Item, Out], skip: Skip | None) -> Iterator[Out]:
    """Yield the results of a job in the order of its items, one step after the other in the caller's thread.

    Raises:
        DeployError: an item cannot be read and ``skip`` is None, or what ``run`` and the loads raise.
    """
    batches: Batches[Item, Out] = Batches(job)
    with contextlib.closing(job.loads):
        for load in job.loads:
            item = load()
            if isinstance(item, Unreadable):
                pass_over(item, skip)
                continue
            for batch in batches.add(item):
                yield from job.run(batch)
        for batch in batches.rest():
            yield from job.run(batch)


def pass_over(item: Unreadable, skip: Skip | None) -> None:
    """Tell of an item that cannot be read.

    Raises:
        DeployError: nobody is to be told.
    """
    if skip is None:
        raise item.error
    skip(item.error)
