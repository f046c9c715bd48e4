"""What workers of the tests run instead of a network: a result for each image, and death where a name says so.

A module of its own, because workers are other processes and import it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from deploykit.errors import DeployError, ImageError
from deploykit.runtime.cluster.parts import Format, encoded, failure
from deploykit.runtime.cluster.plan import Item, Plan
from deploykit.runtime.cluster.work import Done, Task, Work
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.sources.addresses import Address
from deploykit.runtime.sources.frames import Images


@dataclass(frozen=True)
class StubResult:
    """A result with a document."""

    name: str

    def to_dict(self) -> dict[str, Any]:
        """Return a document as a detector's."""
        return {"schema": 1, "name": self.name, "frame": None, "size": [2, 3], "detections": [], "timings_ms": {"a": 1}}


@dataclass(frozen=True)
class StubPredictor:
    """Gives a result for each image. An image whose name has ``bad`` cannot be read, at ``deadly`` the process is
    killed, and at ``once`` too, if it is the first time."""

    folder: str

    def stream(self, images: Images, *, skip: Callable[[DeployError], None]) -> Iterator[StubResult]:
        """Yield the results."""
        for name in images.names:
            Path(self.folder, f"tried-{os.getpid()}").touch()
            if "once" in name and not (mark := Path(self.folder, "died")).exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if "deadly" in name:
                os.kill(os.getpid(), signal.SIGKILL)
            if "bad" in name:
                skip(ImageError(f"{name} is bad"))
                continue
            yield StubResult(name)

    def close(self) -> None:
        """Do nothing."""


def open_stub(folder: str) -> Predictor[Any]:
    """Return the stub as what a worker opens."""
    return cast("Predictor[Any]", StubPredictor(folder))


def stub_work(folder: Path, form: Format = "jsonl") -> Work:
    """Return what workers of the stub are started with."""
    return Work(partial(open_stub, str(folder)), "", "", form)


def planned(names: list[str], per_part: int, form: Format = "jsonl") -> Plan:
    """Return a plan of images at addresses, which nobody reads."""
    items = [Item(Address(f"http://127.0.0.1/{name}.jpg"), name) for name in names]
    return Plan({"model": "m", "options": {"conf": None}, "format": form}, items, per_part)


def done_by_hand(task: Task, form: Format = "jsonl") -> Done:
    """Return what a worker of the stub gives for a task in which nothing is deadly."""
    rows = [
        failure(item.name, f"{item.name} is bad") if "bad" in item.name else StubResult(item.name).to_dict()
        for item in task.items
    ]
    return Done(task.number, encoded(rows, form), len(rows), sum("error" in row for row in rows))
