"""Several ways to run a model side by side: files, providers and threads, in turn, so that all meet the same machine.

Every round runs each variant once on the same images, in an order of its own; where a variant has several threads,
each run begins after a pause in which the idle threads of the one before go to sleep. Ratios are of medians of one
image, end to end, over those of the first variant, and their intervals are of paired rounds
(:mod:`deploykit.runtime.bench.noise`). All networks are in memory at once.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from deploykit.errors import DeployError, UsageError
from deploykit.progress import SILENT, Progress
from deploykit.runtime.bench.images import Source, encoded_images, synthetic_image
from deploykit.runtime.bench.noise import FEWEST, Ratio, ratio_of_medians
from deploykit.runtime.bench.report import SCHEMA, Encoded, Statistics
from deploykit.runtime.bench.runs import AnyPredictor, RecordingSession, Run, batches, limited, run_once
from deploykit.runtime.machine import Machine, cpu_features, versions
from deploykit.runtime.options import MAX_PIXELS

__all__ = ["Measured", "Variant", "VariantsReport", "benchmark_variants"]

PAUSE = 0.02  # seconds
MARGIN = 0.03
"""The share by which a variant must be faster than the first one to be recommended in its place."""
WARM_ROUNDS = 2
INT8_FEATURES = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
"""Instructions that int8 convolutions are fast or slow by."""
FOR_CPU = "files for integer kernels are made by deploykit export --precision int8 --target cpu"


@dataclass(frozen=True)
class Variant:
    """One way to run a model. ``load`` opens its predictor; the rest is what ``load`` does, in words and numbers."""

    name: str
    load: Callable[[], AnyPredictor] = field(repr=False)
    file: str = ""
    bytes: int = 0
    threads: int | None = None


@dataclass(frozen=True)
class Measured:
    """A variant's numbers, in milliseconds of one image.

    ``ratio``: of the median end to end, over that of the first variant. ``unlike``: why it does not compute the same
    as the first variant does; empty: it does.
    """

    name: str
    file: str
    bytes: int
    precision: str
    size: tuple[int, int]
    providers: tuple[str, ...]
    threads: int | None
    load_seconds: float
    model_only: Statistics
    end_to_end: Statistics
    objects: float
    ratio: Ratio
    unlike: str = ""

    @property
    def on_cpu(self) -> bool:
        """Whether ONNX Runtime's own CPU kernels compute it."""
        return self.providers == ("CPUExecutionProvider",)

    def to_dict(self, *, samples: bool = False) -> dict[str, Any]:
        """JSON-able; with the time of every round where ``samples``."""
        return {
            **asdict(self),
            "model_only": self.model_only.to_dict(samples=samples),
            "end_to_end": self.end_to_end.to_dict(samples=samples),
            "ratio": self.ratio.to_dict(),
        }


@dataclass(frozen=True)
class VariantsReport:
    """The variants in the order in which they were given, and those that do not run here with the reason."""

    machine: Machine
    features: tuple[str, ...]
    versions: Mapping[str, str]
    images: Encoded
    rounds: int
    seconds: float
    variants: tuple[Measured, ...]
    left_out: Mapping[str, str]

    @property
    def recommended(self) -> Measured:
        """The variant with the smallest median of those that compute the same and are surely faster than the first.

        Where none is, the first. Of variants that cannot be told from that one, the earliest.
        """
        first, *others = self.variants
        better = [one for one in others if not one.unlike and one.ratio.verdict(MARGIN) == "faster"]
        if not better:
            return first
        best = min(better, key=lambda one: one.end_to_end.p50)
        alike = (
            one
            for one in better
            if ratio_of_medians(best.end_to_end.samples, one.end_to_end.samples, paired=True).low <= 1.0
        )
        return next(alike, best)

    def sentences(self) -> Iterator[str]:
        """What follows from the numbers."""
        best, first = self.recommended, self.variants[0]
        if self.rounds < FEWEST:
            yield f"{self.rounds} rounds are too few to recommend anything: at least {FEWEST} (--duration, --runs)"
        elif best is first:
            yield f"recommended: {best.name}: nothing here is faster by more than {100 * MARGIN:g} % and by noise"
        else:
            yield f"recommended: {best.name}: {best.ratio} times {first.name}, end to end"
        yield from self._int8()
        if self.machine.load is not None and self.machine.load > self.machine.cores:
            busy = f"load {self.machine.load:.1f} on {self.machine.cores} cores"
            yield f"the machine was busy before the first round: {busy}"
        yield "times alone: what a precision costs in accuracy, deploykit eval --against says"

    def _int8(self) -> Iterator[str]:
        """Whether int8 pays on this CPU."""
        alike = [one for one in self.variants if one.on_cpu and not one.unlike]
        narrow = [one for one in alike if one.precision == "int8"]
        wide = [one for one in alike if one.precision != "int8"]
        if not narrow or not wide:
            return
        fast, base = (min(some, key=lambda one: one.end_to_end.p50) for some in (narrow, wide))
        ratio = ratio_of_medians(base.end_to_end.samples, fast.end_to_end.samples, paired=True)
        have = [name for name in INT8_FEATURES if name in self.features]
        lack = [name for name in ("avx512_vnni", "amx_int8") if "avx2" in have and name not in have]
        cpu = (
            f"{', '.join(have) or 'no instructions for int8 that are known'}{''.join(f'; no {name}' for name in lack)}"
        )
        told = f"{fast.name} takes {ratio} times as long as {base.name}"
        verdict = ratio.verdict(MARGIN)
        if verdict == "faster":
            yield f"int8 pays on this CPU ({cpu}): {told}"
        elif verdict == "unsure":
            yield f"these rounds cannot show whether int8 brings something on this CPU ({cpu}): {told}"
        else:
            yield f"int8 brings nothing on this CPU ({cpu}): {told}; {FOR_CPU}"

    def to_dict(self, *, samples: bool = False) -> dict[str, Any]:
        """JSON-able, without the images; with the time of every round where ``samples``."""
        facts = {"schema": SCHEMA, **asdict(replace(self, images=replace(self.images, data=()), variants=()))}
        facts["images"]["count"] = len(self.images.data)
        facts["images"]["bytes"] = sum(map(len, self.images.data))
        facts["images"].pop("data")
        facts["variants"] = [one.to_dict(samples=samples) for one in self.variants]
        return facts | {"recommended": self.recommended.name, "sentences": list(self.sentences())}


@dataclass
class _Open:
    """A loaded variant and its runs."""

    variant: Variant
    predictor: AnyPredictor
    watched: RecordingSession
    load_seconds: float
    batches: Iterator[tuple[bytes, ...]]
    runs: list[Run] = field(default_factory=list)

    def measured(self, first: _Open) -> Measured:
        spec, session = self.predictor.spec, self.watched.session
        return Measured(
            name=self.variant.name,
            file=self.variant.file,
            bytes=self.variant.bytes,
            precision=spec.precision,
            size=spec.input.size,
            providers=session.providers,
            threads=session.threads,
            load_seconds=self.load_seconds,
            model_only=Statistics.of([run.model / self.predictor.batch for run in self.runs]),
            end_to_end=Statistics.of(self.totals),
            objects=sum(run.objects for run in self.runs) / (len(self.runs) * self.predictor.batch),
            ratio=ratio_of_medians(first.totals, self.totals, paired=True),
            unlike=_unlike(first.predictor, self.predictor),
        )

    @property
    def totals(self) -> list[float]:
        return [run.total / self.predictor.batch for run in self.runs]


def benchmark_variants(
    variants: Sequence[Variant],
    source: Source | Sequence[Source] | None = None,
    *,
    duration: float = 30.0,
    rounds: int | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Progress = SILENT,
) -> VariantsReport:
    """Load every variant, and run them in turn.

    Args:
        variants: at least one; the first is what the others are compared with. One that cannot be loaded, or fails in
            its first run, is left out with the reason, but for the first.
        source: images, as in :func:`deploykit.runtime.bench.benchmark.benchmark`.
        duration: seconds to measure, all together; at least one round is made.
        rounds: count exactly so many rounds instead.
        max_pixels: the most pixels that the header of an image may declare.
        progress: hears the steps and their shares.

    Raises:
        UsageError: a number is out of range, or no variant is given. DeployError: the first variant does not run, or
        one fails later.
    """
    if not duration > 0 or (rounds is not None and rounds < 1) or not variants:
        raise UsageError(f"expected variants, and a duration and rounds over 0; got {duration:g} and {rounds}")
    images = encoded_images(source, max_pixels)
    machine = Machine.here()  # now, because its load average is to be that before the measurement
    left_out: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        opened: list[_Open] = []
        for variant in variants:
            progress.step(f"loading {variant.name}")
            try:
                one, images = _opened(variant, images, duration if rounds is None else None)
            except DeployError as e:
                if not opened:
                    raise
                left_out[variant.name] = str(e)
                continue
            stack.callback(one.predictor.close)
            opened.append(one)
        seconds = _rounds(opened, duration, rounds, progress)
        found = tuple(one.measured(opened[0]) for one in opened)
    count = len(opened[0].runs)
    return VariantsReport(machine, cpu_features(), versions(), images, count, seconds, found, left_out)


def _opened(variant: Variant, images: Encoded, duration: float | None) -> tuple[_Open, Encoded]:
    """Load a variant and run it once, so that what cannot run shows before the others have begun."""
    start = time.perf_counter()
    predictor = variant.load()
    try:
        seconds = time.perf_counter() - start
        if images.synthetic and predictor.spec.input.channels > 3:
            images = synthetic_image(predictor.spec.input.channels)
        watched = predictor.session = RecordingSession(limited(predictor, duration))
        run_once(predictor, watched, next(batches(images, predictor.batch)))
    except BaseException:
        predictor.close()
        raise
    return _Open(variant, predictor, watched, seconds, batches(images, predictor.batch)), images


def _rounds(opened: Sequence[_Open], duration: float, rounds: int | None, progress: Progress) -> float:
    """Fill the runs of every variant, and return the seconds that it took."""
    chance = random.Random(0)
    pause = PAUSE if any(one.watched.session.threads != 1 for one in opened) else 0.0
    progress.step("measuring")
    start, warm = time.perf_counter(), WARM_ROUNDS
    while True:
        passed, counted = time.perf_counter() - start, len(opened[0].runs)
        if not warm and (counted == rounds or (rounds is None and counted and passed >= duration)):
            return passed
        progress.share("measuring", min(counted / rounds if rounds else passed / duration, 1.0))
        made: list[tuple[_Open, Run]] = []
        for one in chance.sample(list(opened), len(opened)):
            time.sleep(pause)
            made.append((one, run_once(one.predictor, one.watched, next(one.batches))))
        if warm:
            warm -= 1
            start = time.perf_counter()
        elif not any(run.new_shape for _, run in made):  # a backend prepares itself for a shape that it meets
            for one, run in made:
                one.runs.append(run)


def _unlike(first: AnyPredictor, other: AnyPredictor) -> str:
    """Why a variant is no substitute for the first one; empty: it is one."""
    a, b = first.spec, other.spec
    if a.source.sha256 and b.source.sha256 and a.source.sha256 != b.source.sha256:
        return "of another checkpoint"
    if a.task != b.task or a.classes != b.classes:
        return "of another task or other classes"
    if a.input.size != b.input.size:
        return f"at {b.input.size[0]} x {b.input.size[1]}, not {a.input.size[0]} x {a.input.size[1]}"
    return ""
