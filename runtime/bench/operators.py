"""Where the time of a network goes, operator by operator, by ONNX Runtime's own profile.

Profiling costs time itself, so its runs are none of those that a benchmark counts; its shares are what to read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploykit.atomic import temporary_folder
from deploykit.errors import BackendError
from deploykit.runtime.backends.ort import OrtSession, open_session
from deploykit.runtime.bench.report import Encoded
from deploykit.runtime.bench.runs import AnyPredictor, batches
from deploykit.runtime.session import Session
from deploykit.runtime.sources.frames import Images
from deploykit.strict_json import JsonError, read_json

__all__ = ["Operator", "OperatorProfile", "operator_profile", "read_profile"]

RUNS, WARM = 5, 2
MOST = 512 << 20  # bytes of a profile
ENDING = "_kernel_time"  # of the events that are an operator's computation


@dataclass(frozen=True)
class Operator:
    """All nodes of one operator: how many, and milliseconds of a run; of a single node ``name`` is its own."""

    name: str
    count: int
    ms: float


@dataclass(frozen=True)
class OperatorProfile:
    """Times of one call of the network, means of ``runs``: by operator, and of the nodes that take longest.

    ``other_ms``: what the call took besides all operators.
    """

    runs: int
    operators: tuple[Operator, ...]
    nodes: tuple[Operator, ...]
    other_ms: float

    @property
    def total_ms(self) -> float:
        """The call."""
        return sum(one.ms for one in self.operators) + self.other_ms

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def operator_profile(
    file: Path,
    images: Encoded,
    predictor_of: Callable[[Session], AnyPredictor],
    *,
    provider: str = "auto",
    threads: int | None = None,
) -> OperatorProfile | None:
    """Run an ONNX file a few times with ONNX Runtime's profile.

    Args:
        file: the ``.onnx`` file.
        images: those that a benchmark ran on; the first batch is taken.
        predictor_of: makes a predictor of the session, which prepares the images.
        provider, threads: as in :func:`deploykit.runtime.backends.ort.open_session`.

    Returns:
        None where a GPU computes: the profile has the times in which its kernels were started, and not theirs.

    Raises:
        BackendError: the file cannot be loaded or run, or the profile cannot be read.
    """
    with temporary_folder() as folder:
        session = open_session(file, provider=provider, threads=threads, profile=folder / "operators")
        if session.providers != ("CPUExecutionProvider",):
            session.close()
            return None
        with predictor_of(session) as predictor:
            batch = next(batches(images, predictor.batch))
            for _ in range(WARM + RUNS):
                list(predictor.stream(Images(batch), workers=1))
            return read_profile(_ended(session))


def read_profile(file: Path, *, warm: int = WARM, most_nodes: int = 15) -> OperatorProfile:
    """Read a profile of ONNX Runtime; its first ``warm`` calls do not count.

    Raises:
        BackendError: it is not such a profile, or it has no more calls than that.
    """
    try:
        events = read_json(file, most=MOST)
        calls = [(event["ts"], event["ts"] + event["dur"]) for event in events if event["name"] == "model_run"]
        kernels = [event for event in events if event["cat"] == "Node" and event["name"].endswith(ENDING)]
        spans = sorted(calls)[warm:]
        if not spans:
            raise BackendError(f"expected more than {warm} calls in ONNX Runtime's profile, got {len(calls)}")
        begin, end = spans[0][0], spans[-1][1]
        inside = [
            (str(event["args"]["op_name"]), str(event["name"]).removesuffix(ENDING), float(event["dur"]))
            for event in kernels
            if begin <= event["ts"] < end
        ]
    except (OSError, JsonError, KeyError, TypeError, AttributeError) as e:
        raise BackendError(f"cannot read ONNX Runtime's profile: {type(e).__name__}: {e}") from e
    runs = len(spans)
    total = sum(stop - start for start, stop in spans)
    return OperatorProfile(
        runs=runs,
        operators=_summed([(kind, name, us) for kind, name, us in inside], runs, by=0),
        nodes=_summed(inside, runs, by=1)[:most_nodes],
        other_ms=max(0.0, total - sum(us for _, _, us in inside)) / runs / 1e3,
    )


def _ended(session: OrtSession) -> Path:
    try:
        return session.end_profiling()
    except Exception as e:  # ONNX Runtime's exceptions share no base class
        raise BackendError(f"ONNX Runtime wrote no profile: {' '.join(str(e).split())}") from e


def _summed(found: Sequence[tuple[str, str, float]], runs: int, *, by: int) -> tuple[Operator, ...]:
    """Add up microseconds by the operator (0) or the node (1), the largest first."""
    times: dict[str, float] = {}
    names: dict[str, set[str]] = {}
    for kind, node, us in found:
        key = kind if by == 0 else f"{node} ({kind})"
        times[key] = times.get(key, 0.0) + us
        names.setdefault(key, set()).add(node)
    order = sorted(times, key=lambda key: -times[key])
    return tuple(Operator(key, len(names[key]), times[key] / runs / 1e3) for key in order)
