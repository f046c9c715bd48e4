"""What gpu.py measures with: the device or its stand-in, networks, and the steps of a sitting."""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import shutil
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from interleaved import interleaved
from measured import Row, Table, medians

from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.ort import OrtSession
from deploykit.runtime.backends.ort_cuda import CPU, CUDA, DeviceRuns, open_on_gpu
from deploykit.runtime.backends.ort_providers import CudaOptions
from deploykit.runtime.cuda import Gpu, device_index, open_gpu
from deploykit.runtime.machine import processor_name, versions
from deploykit.runtime.model_spec import session_spec
from deploykit.runtime.native.build import build_libraries, source_folder
from deploykit.runtime.native.cuda_library import CudaLibrary
from deploykit.runtime.native.library import find_library
from deploykit.spec import ModelSpec

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "deploykit" / "assets"
SIDES = ("height", "width")  # names of axes in our exports; the first is batch


class Skipped(Exception):  # noqa: N818  (no error: it is written into the tables)
    """Why a step, or a row of one, was left out."""


@dataclass(frozen=True)
class Network:
    """A network to measure: its files by precision, (height, width), and its checkpoint if there is one."""

    name: str
    files: Mapping[str, Path]
    size: tuple[int, int]
    checkpoint: Path | None = None

    def spec(self, batch: int) -> ModelSpec:
        """Its spec, with the one shape that is measured."""
        found = spec_of(next(iter(self.files.values())))
        fit = replace(found.input.fit, auto=False)
        return replace(found, input=replace(found.input, batch=batch, size=self.size, fit=fit, dynamic="none"))


def spec_of(file: Path) -> ModelSpec:
    """The spec that an ONNX file carries."""
    with OrtSession(file, _raw_session(file, {}, [CPU]), CPU, requested=False) as session:
        return session_spec(session, str(file))


class Device:
    """The GPU with the kernels, or memory and threads of the CPU that stand for both.

    Attributes:
        gpu: the device. real: whether it is one. library: the kernels; None: ``no_library`` says why.
    """

    def __init__(self, asked: str) -> None:
        self.real = asked != "cpu"
        self.library: CudaLibrary | None = None
        self.no_library = ""
        if self.real:
            with contextlib.suppress(ImportError):
                import torch  # noqa: F401  (it loads CUDA's and cuDNN's libraries)

            self.gpu: Gpu = open_gpu(device_index(asked))
            self.name = f"{self.gpu.name}, driver for CUDA {self.gpu.driver}"
        else:
            from tests.cpu_tensorrt import CpuGpu

            self.gpu, self.name = CpuGpu(), f"CPU stand-in on {processor_name()}: its times mean nothing"
        try:
            self.library = CudaLibrary(self.gpu, self._library_file())
        except Exception as e:  # the rest can be measured without
            self.no_library = f"no kernels: {_one_line(e)}"

    def _library_file(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="deploykit-kernels-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)  # a loaded library lies there until the end
        if not self.real:
            file, team = folder / "libteam.so", ROOT / "tests" / "cpp_plugins" / "team.cpp"
            compiler = shutil.which("g++") or shutil.which("c++")
            if compiler is None:
                raise Skipped("no C++ compiler")
            options = ["-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-fvisibility=hidden", "-pthread"]
            command = [compiler, *options, f"-I{source_folder().resolve()}", str(team), "-o", str(file)]
            subprocess.run(command, check=True, capture_output=True)
            return file
        if found := find_library("cuda"):
            return found
        major, minor = self.gpu.compute_capability
        report = build_libraries(folder, only=["cuda"], architectures=[10 * major + minor])
        if "cuda" not in report.built:
            raise Skipped(report.said["cuda"])
        return report.built["cuda"]

    def kernels(self) -> CudaLibrary:
        """The kernels. Raises Skipped where there are none."""
        if self.library is None:
            raise Skipped(self.no_library)
        return self.library

    @contextlib.contextmanager
    def opened(
        self,
        file: Path,
        batch: int,
        size: tuple[int, int],
        *,
        graph: bool = False,
        bound: bool = True,
        nhwc: bool = False,
    ) -> Iterator[OrtSession]:
        """A session of fixed shapes, whatever the file leaves free.

        Raises:
            Skipped: what is asked for needs a GPU, or the network has no graph.
        """
        fixed = dict(zip(("batch", *SIDES), (batch, *size), strict=True))
        if not self.real:
            if graph or nhwc or not bound:
                raise Skipped("needs a GPU")
            raw = _raw_session(file, fixed, [CPU])
            with self.gpu.current():
                stream = self.gpu.new_stream()
            runs: DeviceRuns | None = DeviceRuns(onnxruntime, raw, self.gpu, stream, kind="cpu")
        else:
            options = CudaOptions(graph=graph, nhwc=nhwc)
            if bound:
                raw, runs, notes = open_on_gpu(
                    onnxruntime, lambda providers, _: _raw_session(file, fixed, providers), self.gpu.index, options
                )
                if graph and not notes and not (runs and runs.graph):
                    notes = ["its shapes are not all fixed, so it has no graph"]
                if notes:
                    if runs is not None:
                        runs.close()
                    raise Skipped(notes[0])
            else:
                providers: list[Any] = [(CUDA, options.for_provider(self.gpu.index)), CPU]
                raw, runs = _raw_session(file, fixed, providers), None
        with OrtSession(file, raw, CUDA if self.real else CPU, requested=True, runs=runs) as session:
            yield session

    @contextlib.contextmanager
    def fastest(self, network: Network, precision: str, batch: int, step: Step) -> Iterator[OrtSession]:
        """A session of fixed shapes, in a graph where that works; where it does not, the step keeps the reason."""
        file = network.files[precision]
        with contextlib.ExitStack() as stack:
            try:
                session = stack.enter_context(self.opened(file, batch, network.size, graph=self.real))
            except Skipped as e:
                step.left_out.append(f"{network.name}, {precision}, {batch}, its graph: {e}")
                session = stack.enter_context(self.opened(file, batch, network.size))
            yield session

    def facts(self) -> dict[str, str]:
        """The machine and the versions."""
        found = {"device": self.name, "processor": processor_name(), **versions()}
        for module in ("torch", "cupy", "tensorrt"):
            with contextlib.suppress(Exception):
                found[module] = str(__import__(module).__version__)
        if nvcc := shutil.which("nvcc"):
            said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
            found["nvcc"] = said.strip().splitlines()[-1] if said.strip() else "?"
        found["providers"] = ", ".join(onnxruntime.get_available_providers())
        return found


def _raw_session(file: Path, fixed: Mapping[str, int], providers: Sequence[Any]) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    for axis, side in fixed.items():
        options.add_free_dimension_override_by_name(axis, side)
    return onnxruntime.InferenceSession(str(file), options, providers=list(providers), enable_fallback=0)


@dataclass
class Step:
    """What became of a step: ``done``, ``skipped`` or ``failed``, with the reason."""

    name: str
    state: str = "done"
    reason: str = ""
    seconds: float = 0.0
    tables: list[Table] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    ends: float = math.inf

    def check_time(self) -> None:
        """Raise Skipped where the step has had its time."""
        if time.monotonic() > self.ends:
            raise Skipped("the time of the step was over")


class Sitting:
    """Steps one after the other within a time. What is there is written after each, so that nothing is lost.

    Args:
        out: the folder of gpu.json and gpu.md.
        budget: seconds in all; a step that is not begun by then is skipped.
        device: what is measured.
    """

    def __init__(self, out: Path, budget: float, device: Device) -> None:
        self.out, self.budget, self.device = out, budget, device
        self.steps: list[Step] = []
        self._start = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.budget - (time.monotonic() - self._start)

    def step(self, name: str, work: Callable[[Step], list[Table]], needs: float, most: float = math.inf) -> None:
        """Do a step that takes ``needs`` seconds at least; a failure is recorded, and the next step goes on.

        No row of its tables is begun after ``most`` seconds, or after those that are left.
        """
        begun = time.monotonic()
        step = Step(name, ends=begun + min(most, self.left))
        print(f"== {name} [{begun - self._start:.0f} s of {self.budget:.0f}]", flush=True)
        try:
            if self.left < needs:
                raise Skipped(f"{max(self.left, 0):.0f} s are left, and it takes about {needs:.0f}")
            step.tables = work(step)
        except Skipped as e:
            step.state, step.reason = "skipped", str(e)
        except Exception as e:  # the next step tells more than the end of the program
            step.state, step.reason = "failed", f"{type(e).__name__}: {_one_line(e)}"
            traceback.print_exc()
        step.seconds = round(time.monotonic() - begun, 1)
        self.steps.append(step)
        for table in step.tables:
            print(f"{table.title}\n\n{table.markdown()}")
        for line in (*step.left_out, f"{step.state}: {step.reason}" if step.reason else ""):
            if line:
                print(f"   {line}", flush=True)
        self.write()

    def write(self) -> None:
        """Write both files."""
        self.out.mkdir(parents=True, exist_ok=True)
        facts = self.device.facts()
        date = datetime.now(UTC).isoformat(timespec="seconds")
        steps = [{key: value for key, value in asdict(step).items() if key != "ends"} for step in self.steps]
        kept = {"date": date, "real": self.device.real, "machine": facts, "steps": steps}
        (self.out / "gpu.json").write_text(json.dumps(kept, indent=1) + "\n")
        lines = [f"# {self.device.name}", "", date, "", *(f"* {name}: {value}" for name, value in facts.items()), ""]
        for step in self.steps:
            lines += [
                f"## {step.name}",
                "",
                f"{step.state} in {step.seconds} s{': ' * bool(step.reason)}{step.reason}",
                "",
            ]
            for table in step.tables:
                lines += [table.title, "", table.markdown()]
            lines += [*(f"* left out: {each}" for each in step.left_out), ""]
        (self.out / "gpu.md").write_text("\n".join(lines))


def rows_of(step: Step, wanted: Mapping[tuple[str, ...], Callable[[], Mapping[str, float]]]) -> tuple[Row, ...]:
    """The rows of a table, by their labels; one that cannot be measured is left out with its reason."""
    rows = []
    for labels, measure in wanted.items():
        try:
            step.check_time()
            rows.append(Row(labels, dict(measure())))
        except Skipped as e:
            step.left_out.append(f"{', '.join(labels)}: {e}")
        except Exception as e:  # as in a step
            step.left_out.append(f"{', '.join(labels)}: {type(e).__name__}: {_one_line(e)}")
        else:
            print(f"   {', '.join(labels)}: {' '.join(f'{k} {v:.4g}' for k, v in rows[-1].values.items())}", flush=True)
    if not rows:
        raise Skipped("none of its rows could be measured" + f" ({step.left_out[-1]})" * bool(step.left_out))
    return tuple(rows)


def alone(runs: DeviceRuns, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Run the network between its buffers on the device, and wait for it."""
    with runs.hold(shapes) as bound:
        bound.enqueue()
        runs.gpu.synchronize(runs.stream)


def timed(variants: Mapping[str, Callable[[], object]], seconds: float, most: int) -> dict[str, float]:
    """Medians in ms of variants that run in turn; as many rounds as fit, at least 3, at most ``most``."""
    start = time.perf_counter()
    for run in variants.values():
        run()
        run()
    each = (time.perf_counter() - start) / 2
    return medians(interleaved(variants, max(3, min(most, int(seconds / max(each, 1e-6)))), warmup=2))


def photograph(size: tuple[int, int], number: int) -> Array:
    """A real image of a size (height, width), another one for each number: flipped and shifted."""
    name = ("markers.jpg", "apollo11_crew.jpg")[number % 2]
    image = cv2.imread(str(ASSETS / name))
    assert image is not None
    image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    image = image[:, ::-1] if number % 4 > 1 else image
    return np.ascontiguousarray(np.roll(image, 16 * (number // 4), axis=1))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
