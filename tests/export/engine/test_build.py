"""Real engines of TensorRT for RTX, which builds without a GPU; and what is said where one cannot be built."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deploykit.errors import (
    ArtefactError,
    DeployError,
    DeviceError,
    ExportError,
    MissingDependencyError,
    NotFoundError,
    OutputError,
    ParityError,
    SpecError,
    UsageError,
)
from deploykit.export.engine import build as engine_build
from deploykit.export.engine import builder
from deploykit.export.engine import stages as engine_stages
from deploykit.export.engine.build import build_engine
from deploykit.export.engine.progress import BuildProgress
from deploykit.export.engine.report import EngineReport
from deploykit.export.engine.timing_cache import place_of_cache
from deploykit.export.formats import export_formats
from deploykit.export.options import EngineOptions, OnnxOptions
from deploykit.export.parity.tolerances import FP16
from deploykit.progress import SILENT
from deploykit.runtime.backends.kept_bytes import keep_bytes, kept_bytes
from deploykit.runtime.backends.trt.bindings import BuildLog
from deploykit.runtime.cuda import gpu_unavailable_reason
from deploykit.runtime.engine_record import (
    BuilderOptions,
    Profile,
    build_log_path,
    parity_report_path,
    read_record,
    record_path,
    reference_values_path,
)
from deploykit.runtime.integrity.chain import verify_chain
from deploykit.runtime.parity.expected import ReferenceOutputs
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.runtime.session import Session
from deploykit.spec import ModelSpec
from tests.cell_model import cell_spec, write_cell_model
from tests.cpu_tensorrt import CpuGpu
from tests.heard import Heard

rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed")
no_gpu = pytest.mark.skipif(
    gpu_unavailable_reason() is None, reason="this machine has a GPU, where engines run at once"
)


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """A network of a few nodes."""
    return write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())


def built(onnx_file: Path, **options: object) -> EngineReport:
    """Build, and check everything that can be read of the engine without a GPU."""
    import tensorrt_rtx as trt

    report = build_engine(onnx_file, flavour="tensorrt-rtx", **options)  # type: ignore[arg-type]
    record, engine = report.record, report.path
    assert read_record(engine) == record
    assert (record.flavour, record.version, record.size) == ("tensorrt-rtx", trt.__version__, engine.stat().st_size)
    assert (record.verified, record.precision_from) == (False, "network")
    assert record.unverified.startswith("built, not run: no GPU (")
    # The plan itself: TensorRT finds its header whole (and then that there is no GPU), and not that of what is cut.
    runtime = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR))
    header = engine.read_bytes()[: runtime.engine_header_size]
    malformed = int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
    assert not runtime.get_engine_validity(header)[1] & malformed
    assert runtime.get_engine_validity(b"x" + header[1:])[1] & malformed
    assert "Engine generation completed" in build_log_path(engine).read_text()
    chain = verify_chain(engine)
    beside = {file.name for file in engine.parent.glob(f"{engine.name}*")} - {record_path(engine).name}
    assert {link.file.name for link in chain.links if link.state == "ok"} >= beside
    assert onnx_file.parent != engine.parent or onnx_file in {link.file for link in chain.links if link.state == "ok"}
    assert chain.problem == ""
    return report


@rtx
@no_gpu
def test_an_engine_is_built_with_what_is_needed_beside_it(cells: Path) -> None:
    heard = Heard()
    report = built(cells, progress=heard)
    steps, seen = heard.steps, heard.shares
    names = {p.name for p in cells.parent.iterdir()}
    beside = {"cells.trt.json", "cells.trt.log", "cells.trt.parity.npz"}
    assert names == {"cells.onnx", "cells.trt", *beside}
    assert report.record.spec == cell_spec()
    assert report.record.onnx == "cells.onnx"
    assert report.record.layers > 5
    assert report.parity is None
    assert json.loads((cells.parent / "cells.trt.json").read_text())["verified"] is False
    assert [step for step in steps if ":" not in step] == ["reading", "parsing", "building", "writing", "checking"]
    built_so_far = [(what, share) for what, share in seen if not what.startswith("checking")]
    assert built_so_far[0][1] < 0.5
    assert built_so_far[-1] == ("Building engine", 1.0)
    assert [share for _, share in built_so_far] == sorted(share for _, share in built_so_far)
    assert seen[-1] == ("checking: reference values, 2 of 2 runs", 1.0)


@rtx
@no_gpu
def test_the_reference_values_are_what_the_onnx_file_gives(cells: Path) -> None:
    from deploykit.facade import open_session

    report = built(cells)
    expected = ReferenceOutputs.load(reference_values_path(report.path))
    assert list(expected.computed) == ["cells.onnx"]
    assert len(expected.feeds.images) == 2
    with open_session(cells) as session:
        for label, image in expected.feeds.images.items():
            output = session.run({"images": image})["output"][0]
            np.testing.assert_array_equal(expected.rows["cells.onnx"][label], output)


@rtx
@no_gpu
def test_the_reference_values_have_the_limits_of_the_precision(cells: Path) -> None:
    half = write_cell_model(cells.with_name("half.onnx"), spec=replace(cell_spec(), precision="fp16"), half=True)
    for file, limits in ((cells, Tolerance()), (half, FP16)):
        assert ReferenceOutputs.load(reference_values_path(built(file).path)).limits == limits


@rtx
@no_gpu
@pytest.mark.parametrize("name", ["static", "batch", "shape"])
def test_networks_of_every_kind_of_shape_are_built(exported: Path, tmp_path: Path, name: str) -> None:
    report = built(exported / f"{name}.onnx", out=tmp_path)
    expected = {
        "static": (),
        "batch": (Profile((1, 3, 64, 64), (1, 3, 64, 64), (8, 3, 64, 64)),),
        "shape": (Profile((1, 3, 16, 16), (1, 3, 64, 64), (8, 3, 64, 64)),),
    }
    assert report.record.profiles == expected[name]
    assert report.record.precision["fp32"] > 10
    batches = [batch.images for batch in ReferenceOutputs.load(reference_values_path(report.path)).feeds.batches]
    assert max(len(images) for images in batches) == (1 if name == "static" else 3)


@rtx
@no_gpu
def test_profiles_that_are_asked_for_bound_what_is_compared(exported: Path, tmp_path: Path) -> None:
    profiles = (
        Profile((1, 3, 64, 64), (1, 3, 64, 64), (1, 3, 64, 64)),
        Profile((1, 3, 64, 64), (2, 3, 64, 64), (2, 3, 64, 64)),
    )
    report = built(exported / "shape.onnx", out=tmp_path / "two.engine", options=EngineOptions(profiles=profiles))
    assert report.path == tmp_path / "two.engine"
    assert report.record.profiles == profiles
    expected = ReferenceOutputs.load(reference_values_path(report.path))
    assert max(len(batch.images) for batch in expected.feeds.batches) == 2
    assert {image.shape for image in expected.feeds.images.values()} == {(1, 3, 64, 64)}


@rtx
@no_gpu
def test_options_reach_the_builder_and_the_record(cells: Path) -> None:
    options = EngineOptions(
        workspace=2**28, tf32=True, compute_capabilities=("sm89", "sm120"), optimization_level=1, verbose=True
    )
    report = built(cells, options=options)
    assert report.record.options == options.builder
    log = build_log_path(report.path).read_text()
    assert "VERBOSE" in log
    default = built(cells)
    assert default.record.options == BuilderOptions()
    assert "VERBOSE" not in build_log_path(default.path).read_text()


@rtx
@no_gpu
def test_tf32_is_off_unless_it_is_asked_for(cells: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder's default is on; what it is really given is read back from its configuration."""
    import tensorrt_rtx as trt

    from deploykit.export.engine import builder

    given: list[bool] = []
    apply = builder._apply

    def noted(module: object, config: object, options: BuilderOptions) -> None:
        assert config.get_flag(trt.BuilderFlag.TF32)  # type: ignore[attr-defined]
        apply(module, config, options)
        given.append(config.get_flag(trt.BuilderFlag.TF32))  # type: ignore[attr-defined]

    monkeypatch.setattr(builder, "_apply", noted)
    built(cells)
    built(cells, options=EngineOptions(tf32=True))
    assert given == [False, True]


@rtx
@no_gpu
def test_without_a_check_nothing_is_promised(cells: Path) -> None:
    report = build_engine(cells, flavour="tensorrt-rtx", check=False)
    assert not reference_values_path(report.path).exists()
    assert report.record.unverified == "not checked, as asked for"


@rtx
@no_gpu
def test_an_older_engines_companions_do_not_stay(cells: Path) -> None:
    engine = cells.with_suffix(".trt")
    parity_report_path(engine).write_text("{}")
    built(cells)
    assert not parity_report_path(engine).exists()
    build_engine(cells, flavour="tensorrt-rtx", check=False)
    assert not reference_values_path(engine).exists()


@rtx
@no_gpu
def test_a_checkpoint_becomes_an_onnx_file_and_an_engine_that_is_held_against_it(
    checkpoint: Path, tmp_path: Path
) -> None:
    exports = export_formats(
        checkpoint, ["tensorrt-rtx"], out=f"{tmp_path}/", onnx=OnnxOptions(img=64, exporter="legacy")
    )
    assert exports.onnx is not None
    assert exports.onnx.path == tmp_path / "few.onnx"
    (engine,) = exports.engines
    assert engine.path == tmp_path / "few.trt"
    expected = ReferenceOutputs.load(reference_values_path(engine.path))
    assert dict(expected.computed) == {"the checkpoint": "PyTorch CPU float64"}
    assert engine.record.spec == exports.onnx.spec


@rtx
@no_gpu
@pytest.mark.data
@pytest.mark.slow
def test_the_golden_pose_model_becomes_an_engine(shared: Path, tmp_path: Path) -> None:
    weights = shared / "golden" / "yolov7-w6-pose-narrow.pt"
    exports = export_formats(
        weights, ["onnx", "tensorrt-rtx"], out=f"{tmp_path}/", onnx=OnnxOptions(img=256, dynamic="batch")
    )
    (engine,) = exports.engines
    assert engine.record.precision == {"fp32": 155}
    assert engine.record.profiles[0].max == (8, 3, 256, 256)


# What cannot be built.


def write_graph(path: Path, node: onnx.NodeProto, *, spec: ModelSpec | None = None) -> Path:
    """A graph of one node that takes the cell model's input."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 64, 64])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "one", [images], [output])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("deploykit", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    helper.set_model_props(model, {"deploykit": (spec or cell_spec()).to_json()})
    onnx.save(model, str(path))
    return path


@rtx
def test_an_operator_that_tensorrt_lacks_is_named_and_the_log_stays(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "m.onnx", helper.make_node("Unheard", ["images"], ["output"], domain="deploykit"))
    with pytest.raises(ExportError, match=r"cannot parse .*m\.onnx: .*\(full log: .*m\.trt\.log\)") as refused:
        build_engine(path, flavour="tensorrt-rtx")
    assert "Unheard" in str(refused.value)
    assert {p.name for p in tmp_path.iterdir()} == {"m.onnx", "m.trt.log"}
    assert "Unheard" in build_log_path(tmp_path / "m.trt").read_text()


@rtx
@no_gpu
def test_what_has_no_kernel_is_an_error_with_tensorrts_reason(tmp_path: Path) -> None:
    """TensorRT for RTX reads NonMaxSuppression and then has nothing that computes it."""
    boxes = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 100, 4])
    scores = helper.make_tensor("scores", TensorProto.FLOAT, [1, 1, 100], np.linspace(0, 1, 100).tolist())
    most = helper.make_tensor("most", TensorProto.INT64, [1], [10])
    node = helper.make_node("NonMaxSuppression", ["images", "scores", "most"], ["output"])
    output = helper.make_tensor_value_info("output", TensorProto.INT64, [None, 3])
    graph = helper.make_graph([node], "nms", [boxes], [output], [scores, most])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))
    with pytest.raises(ExportError, match=r"built no engine: .*no runners that implement it") as e:
        build_engine(path, flavour="tensorrt-rtx", spec=cell_spec())
    assert str(e.value).endswith(f"; deploykit preflight {path} names the node, and what to do")
    assert {p.name for p in tmp_path.iterdir()} == {"m.onnx", "m.trt.log"}


@rtx
@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (DeviceError("cudaSetDevice failed with code 101"), DeviceError, "^cudaSetDevice failed with code 101$"),
        (MemoryError("64 GB"), ExportError, "TensorRT built no engine: MemoryError: 64 GB"),
        (SystemExit(3), ExportError, "TensorRT built no engine: SystemExit: 3"),
    ],
    ids=["DeviceError", "MemoryError", "SystemExit"],
)
def test_an_error_in_the_building_thread_reaches_the_caller(
    cells: Path, error: BaseException, raised: type[DeployError], words: str
) -> None:
    import tensorrt_rtx as trt

    @contextlib.contextmanager
    def bound() -> Iterator[None]:
        raise error
        yield

    network = builder.parse(trt, cells, BuildLog())
    with pytest.raises(raised, match=words) as caught:
        builder.build(network, BuilderOptions(), (), BuildProgress(SILENT), bound=bound())
    assert error in (caught.value, caught.value.__cause__)


@rtx
def test_an_older_engine_survives_a_build_that_fails(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "m.onnx", helper.make_node("Unheard", ["images"], ["output"], domain="deploykit"))
    (tmp_path / "m.trt").write_bytes(b"older")
    with pytest.raises(ExportError):
        build_engine(path, flavour="tensorrt-rtx")
    assert (tmp_path / "m.trt").read_bytes() == b"older"


@rtx
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"options": EngineOptions(version_compatible=True)}, "no version-compatible engines"),
        ({"options": EngineOptions(hardware_compatible="ampere+")}, "with --compute-capability"),
        ({"options": EngineOptions(compute_capabilities=("sm90",))}, r"builds for sm75, sm80, .* not for 'sm90'"),
        ({"options": EngineOptions(workspace=0)}, "at least 1 byte, got 0"),
        ({"options": EngineOptions(optimization_level=6)}, r"from 0 to 5, got 6"),
        ({"options": EngineOptions(profiles=(Profile(*[(1, 3, 64, 64)] * 3),))}, "all shapes are fixed"),
        ({"out": "model.bin"}, r"ends in \.trt or \.engine or \.plan"),
        ({"flavour": "openvino"}, "flavour must be auto, tensorrt or tensorrt-rtx"),
    ],
)
def test_options_that_do_not_fit_are_refused(cells: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build_engine(cells, **{"flavour": "tensorrt-rtx", **options})  # type: ignore[arg-type]
    assert not [p for p in cells.parent.iterdir() if p.suffix in (".trt", ".json")]


@rtx
def test_a_profile_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = write_cell_model(tmp_path / "d.onnx", batch="batch", spec=cell_spec(dynamic=True))
    with pytest.raises(UsageError, match=r"a profile's shape must match float32 \(\?, 3, 64, 64\), got 1x3x32x32"):
        build_engine(
            path,
            flavour="tensorrt-rtx",
            options=EngineOptions(profiles=(Profile((1, 3, 32, 32), (1, 3, 64, 64), (1, 3, 64, 64)),)),
        )


@rtx
def test_a_spec_that_is_not_of_the_network_is_refused(tmp_path: Path) -> None:
    spec = replace(cell_spec(), input=replace(cell_spec().input, name="other"))
    path = write_cell_model(tmp_path / "m.onnx", spec=spec)
    with pytest.raises(SpecError, match=r"the one input 'other', .* has images"):
        build_engine(path, flavour="tensorrt-rtx")


@rtx
def test_a_precision_that_the_file_does_not_have_is_refused(exported: Path, tmp_path: Path) -> None:
    from deploykit.export.inspection import inspect_file

    assert inspect_file(exported / "static.onnx").facts["precision"] == "fp32"
    with pytest.raises(ExportError, match=r"as TensorRT reads it, must compute in fp16, but .* in fp32"):
        build_engine(
            exported / "static.onnx",
            flavour="tensorrt-rtx",
            out=tmp_path,
            spec=replace(engine_build._embedded_spec(exported / "static.onnx"), precision="fp16"),
        )


def test_files_that_are_not_onnx_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        build_engine(tmp_path / "none.onnx", flavour="tensorrt-rtx")
    if find_spec("tensorrt_rtx") is None:
        pytest.skip("TensorRT for RTX is not installed")
    (tmp_path / "bad.onnx").write_bytes(b"what")
    with pytest.raises(ArtefactError, match="not a whole ONNX file"):
        build_engine(tmp_path / "bad.onnx", flavour="tensorrt-rtx")
    with pytest.raises(SpecError, match="carries no spec of its input and output"):
        build_engine(write_cell_model(tmp_path / "plain.onnx"), flavour="tensorrt-rtx")


@rtx
def test_a_place_that_cannot_be_written_is_found_out_at_once(cells: Path) -> None:
    (cells.parent / "file").write_bytes(b"")
    with pytest.raises(OutputError):
        build_engine(cells, flavour="tensorrt-rtx", out=cells.parent / "file" / "m.trt")


@no_gpu
def test_tensorrt_proper_needs_a_gpu_to_build(cells: Path) -> None:
    with pytest.raises(DeviceError, match=r"builds engines on an NVIDIA GPU, and .* take --format tensorrt-rtx"):
        build_engine(cells, flavour="tensorrt")


@pytest.mark.parametrize(
    ("have", "reason", "flavour"),
    [
        (("tensorrt", "tensorrt-rtx"), None, "tensorrt"),
        (("tensorrt", "tensorrt-rtx"), "there is no GPU", "tensorrt-rtx"),
        (("tensorrt",), "there is no GPU", "tensorrt"),
        (("tensorrt-rtx",), None, "tensorrt-rtx"),
        ((), None, None),
    ],
)
def test_auto_takes_the_flavour_that_can_build(
    monkeypatch: pytest.MonkeyPatch, have: tuple[str, ...], reason: str | None, flavour: str | None
) -> None:
    monkeypatch.setattr(engine_build, "installed", lambda: have)
    monkeypatch.setattr(engine_build, "gpu_unavailable_reason", lambda: reason)
    if flavour is None:
        with pytest.raises(
            MissingDependencyError, match=r"deploykit-vision\[tensorrt-rtx\]', which builds without a GPU"
        ):
            engine_build.chosen_flavour("auto")
    else:
        assert engine_build.chosen_flavour("auto") == flavour


@rtx
@no_gpu
@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (RuntimeError("no such device"), ExportError, "TensorRT built no engine: RuntimeError: no such device"),
        (DeviceError("the GPU is gone"), DeviceError, "the GPU is gone"),
    ],
    ids=["foreign", "ours"],
)
def test_what_fails_in_the_building_thread_reaches_the_caller(
    error: Exception, raised: type[Exception], said: str, cells: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def bound() -> Iterator[None]:
        raise error
        yield

    build = engine_stages.build
    monkeypatch.setattr(engine_stages, "build", lambda *a, **options: build(*a, **{**options, "bound": bound()}))
    with pytest.raises(raised, match=said) as caught:
        build_engine(cells, flavour="tensorrt-rtx")
    assert error in (caught.value, caught.value.__cause__, getattr(caught.value.__cause__, "__cause__", None))


@pytest.mark.parametrize("times", [1, 3])
@rtx
def test_ctrl_c_ends_a_build_and_leaves_nothing(times: int, tmp_path: Path, exported: Path) -> None:
    """The signal comes while the builder is inside of TensorRT, which is why the build has a thread of its own; what
    that thread uses is not freed before it has ended.
    """
    interrupted = threading.Event()

    class Interrupting(Heard):
        def share(self, what: str, done: float) -> None:
            if not interrupted.is_set():
                interrupted.set()
                for _ in range(times):
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(0.3)  # the main thread notices before the builder goes on

    progress = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        build_engine(exported / "static.onnx", flavour="tensorrt-rtx", out=tmp_path / "m.trt", progress=progress)
    assert not [thread for thread in threading.enumerate() if thread.name == "engine build"]
    assert progress.messages == ["interrupted: TensorRT ends the build at its next step"] * times
    assert list(tmp_path.iterdir()) == []


def _as_engine(file: Path, layers: str = "") -> Session:
    """An ONNX file's session that answers as an engine's does; ``layers`` is what its inspector would say."""
    from deploykit.facade import open_session

    session = open_session(file)
    session.layer_information = lambda: layers  # type: ignore[attr-defined]  # an engine's session has it
    return session


@rtx
def test_the_precision_of_an_engine_is_its_layers_own(exported: Path, tmp_path: Path) -> None:
    record = build_engine(exported / "static.onnx", flavour="tensorrt-rtx", out=tmp_path / "x.trt", check=False).record
    assert engine_build._with_layer_precision(record, {}, "x.trt") is record  # the inspector tells nothing
    told = engine_build._with_layer_precision(record, {"fp16": 2, "fp32": 1}, "x.trt")
    assert (told.precision, told.precision_from) == ({"fp16": 2, "fp32": 1}, "engine")
    with pytest.raises(ExportError, match=r"x\.trt, as TensorRT built it, must compute in fp32, but .* 3 in fp16"):
        engine_build._with_layer_precision(record, {"fp16": 3}, "x.trt")


@rtx
def test_an_engine_that_gives_other_numbers_is_not_kept(cells: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate itself, with the engine's session replaced by that of another network."""
    other = write_cell_model(cells.parent / "other.onnx", half=False)
    model = onnx.load(str(other))
    boxes = next(t for t in model.graph.initializer if t.name == "boxes")
    moved = onnx.numpy_helper.to_array(boxes) + 1
    boxes.CopyFrom(onnx.numpy_helper.from_array(moved, "boxes"))
    onnx.save(model, str(other))
    gpu = CpuGpu()
    monkeypatch.setattr(engine_build, "open_gpu", lambda index: gpu)
    monkeypatch.setattr(engine_build, "gpu_unavailable_reason", lambda: None)
    monkeypatch.setattr(engine_build, "open_engine", lambda *_: _as_engine(other))
    with pytest.raises(ParityError, match=r"boxes of cells\.trt differ from cells\.onnx"):
        build_engine(cells, flavour="tensorrt-rtx")
    assert {p.name for p in cells.parent.iterdir()} == {"cells.onnx", "other.onnx"}
    monkeypatch.setattr(engine_build, "open_engine", lambda *_: _as_engine(cells))
    report = build_engine(cells, flavour="tensorrt-rtx")
    assert report.record.verified
    assert report.record.gpu == "CPU stand-in"
    assert report.parity is not None
    assert report.parity.ok
    assert json.loads(parity_report_path(report.path).read_text())["ok"]
    assert not reference_values_path(report.path).exists()


@rtx
@pytest.mark.parametrize("reason", ["{engine} does not run on CPU stand-in", "CPU stand-in is not supported"])
def test_an_engine_that_does_not_run_on_this_gpu_is_kept_and_says_why(
    cells: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """Its folder at that time, which is gone afterwards, is not in the reason."""

    def refuse(engine: Path, *_: object) -> Session:
        raise DeviceError(reason.format(engine=engine))

    monkeypatch.setattr(engine_build, "open_gpu", lambda index: CpuGpu())
    monkeypatch.setattr(engine_build, "gpu_unavailable_reason", lambda: None)
    monkeypatch.setattr(engine_build, "open_engine", refuse)
    report = build_engine(cells, flavour="tensorrt-rtx")
    assert report.record.unverified == "built, not run: " + reason.format(engine="cells.trt")
    assert read_record(report.path) == report.record
    assert not report.record.verified
    assert report.parity is None
    assert list(ReferenceOutputs.load(reference_values_path(report.path)).computed) == ["cells.onnx"]


# The timing cache of TensorRT proper.


def test_the_timing_cache_is_of_one_version_and_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    gpu = CpuGpu()
    place = place_of_cache("10.16.0.1", gpu)
    assert place == tmp_path / "deploykit" / "timing" / "tensorrt-10.16.0.1-sm90-cpu-stand-in.cache"
    assert kept_bytes(place) == b""
    keep_bytes(place, b"measured")
    assert kept_bytes(place) == b"measured"
    gpu.name = "NVIDIA H200"
    assert kept_bytes(place_of_cache("10.16.0.1", gpu)) == b""
    assert kept_bytes(place_of_cache("11.1.0.106", CpuGpu())) == b""


def test_a_timing_cache_that_cannot_be_written_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    place = place_of_cache("10.16.0.1", CpuGpu())
    keep_bytes(place, b"measured")
    assert kept_bytes(place) == b""
