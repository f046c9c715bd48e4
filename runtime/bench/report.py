"""What a benchmark says: times with their percentiles, and everything that a reader must know to judge them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deploykit.runtime.machine import Machine
from deploykit.spec import ModelSpec

__all__ = ["SCHEMA", "Benchmark", "Encoded", "Memory", "Network", "Part", "Statistics"]

PERCENTILES = (50, 90, 99)
SCHEMA = 1
"""Version of the JSON that :meth:`Benchmark.to_dict` gives: a name that goes or changes its meaning counts it up."""


@dataclass(frozen=True)
class Statistics:
    """Milliseconds of ``count`` runs; a percentile between two runs is interpolated linearly."""

    count: int
    mean: float
    std: float
    min: float
    p50: float
    p90: float
    p99: float
    max: float
    samples: tuple[float, ...] = field(repr=False)

    @classmethod
    def of(cls, samples: Sequence[float]) -> Statistics:
        """Of at least one value."""
        values = np.asarray(samples, np.float64)
        p50, p90, p99 = (float(p) for p in np.percentile(values, PERCENTILES))
        # Rounding must not put the mean of equal values beside them.
        mean = float(np.clip(values.mean(), values.min(), values.max()))
        return cls(
            count=len(values), mean=mean, std=float(values.std()), min=float(values.min()),
            p50=p50, p90=p90, p99=p99, max=float(values.max()), samples=tuple(values.tolist()),
        )  # fmt: skip

    @property
    def unsure(self) -> tuple[str, ...]:
        """The percentiles that need more runs: of fewer than 100, not one lies in the slowest hundredth."""
        return tuple(f"p{p}" for p in PERCENTILES if self.count * (100 - p) < 100)

    def to_dict(self, *, samples: bool = False) -> dict[str, Any]:
        """JSON-able; with the time of every run where ``samples``."""
        values = dataclasses.asdict(self)
        every = list(values.pop("samples"))
        return {**values, "unsure": list(self.unsure), **({"samples": every} if samples else {})}


@dataclass(frozen=True)
class Part:
    """One of the two measurements, in milliseconds a run.

    ``includes`` says in a sentence what is in ``total``, ``stages`` what it consists of (of the network alone: its
    stages on a GPU, by the GPU's own clock, where it computes on one). ``images_per_second`` is the images of all
    runs over the time of all runs.
    """

    includes: str
    total: Statistics
    images_per_second: float
    stages: Mapping[str, Statistics] = field(default_factory=dict)

    def to_dict(self, *, samples: bool = False) -> dict[str, Any]:
        """JSON-able."""
        return {
            "includes": self.includes,
            "images_per_second": self.images_per_second,
            "total_ms": self.total.to_dict(samples=samples),
            "stages_ms": {name: stage.to_dict(samples=samples) for name, stage in self.stages.items()},
        }


@dataclass(frozen=True)
class Encoded:
    """Images in memory as they lie in files, and their (height, width); ``left_out``: there were so many more.

    ``sources`` are the files and folders that they are from, as they were given.
    """

    sources: tuple[str, ...]
    data: tuple[bytes, ...] = field(repr=False)
    sizes: tuple[tuple[int, int], ...]
    left_out: int = 0
    synthetic: bool = False


@dataclass(frozen=True)
class Network:
    """What was measured: facts of the session as it was in effect. ``shapes``: of all inputs that it was given;
    ``threads_from``: what set the number of threads, empty: the backend itself.
    """

    model: str
    precision: str
    inputs: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    providers: tuple[str, ...]
    threads: int | None
    threads_from: str
    load_seconds: float


@dataclass(frozen=True)
class Memory:
    """Bytes of the process: before the model was loaded, after it, and the most from then until the end.

    None: the system, or the backend, does not say. ``peak_of_process``: the peak could not be reset, so it is that of
    the whole life of the process. ``device``: on the GPU.
    """

    before: int | None
    loaded: int | None
    peak: int | None
    peak_of_process: bool
    device: int | None


@dataclass(frozen=True)
class Benchmark:
    """The result of :func:`benchmark`. ``objects``: found in an image on average; ``seconds``: of measuring."""

    machine: Machine
    versions: dict[str, str]
    network: Network
    opencv_threads: int
    spec: ModelSpec
    images: Encoded
    batch: int
    warmup_runs: int
    warmup_seconds: float
    runs: int
    seconds: float
    model_only: Part
    end_to_end: Part
    objects: float
    memory: Memory
    notes: tuple[str, ...] = ()

    def to_dict(self, *, samples: bool = False) -> dict[str, Any]:
        """JSON-able, without the images; with the time of every run where ``samples``."""
        plain = dataclasses.replace(self.images, data=())
        facts = {"schema": SCHEMA, **dataclasses.asdict(dataclasses.replace(self, images=plain))}
        facts["images"] |= {"data": sum(map(len, self.images.data)), "count": len(self.images.data)}
        facts["images"]["bytes"] = facts["images"].pop("data")
        facts["model_only"] = self.model_only.to_dict(samples=samples)
        facts["end_to_end"] = self.end_to_end.to_dict(samples=samples)
        return facts
