"""Images in, results out: a real small network that finds coloured blocks, and a fake one where shapes matter."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

import deploykit
from deploykit.errors import BackendError, ImageError, MissingDependencyError, NotFoundError, SpecError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.fake import FakeSession
from deploykit.runtime.images.letterbox import Letterbox
from deploykit.runtime.images.video_writer import Mp4Writer
from deploykit.runtime.options import PredictOptions
from deploykit.runtime.postprocess.detections import NetworkDetections, to_source
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.results.detection import Result
from deploykit.runtime.session import TensorInfo, open_session
from deploykit.spec import Fit, InputSpec, KeypointSpec, ModelSpec, NmsOutputs, RawDetections, Thresholds
from tests.cell_model import BLUE, RED, cell_spec, planted, write_cell_model

RED_AT_1_2 = planted((1, 2, RED), scale=10)  # 640 x 640 pixels: the cell is 80 pixels wide


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())


def _facts(result: Result) -> list[tuple[str, list[float]]]:
    return [(d.name, d.box.round(3).tolist()) for d in result]


def _file(path: Path, image: Array) -> Path:
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return path


def test_a_planted_block_is_found_where_it_is_and_by_its_colour(model: Path) -> None:
    result = deploykit.load(model)(planted((1, 2, RED), (6, 5, BLUE), scale=10))
    assert sorted(_facts(result)) == [("blue", [480, 400, 560, 480]), ("red", [80, 160, 160, 240])]
    assert result.scores.tolist() == [1, 1]
    assert result.keypoints is not None
    assert result.keypoints[0].tolist() == [[120, 200, 1]]
    assert (result.size, result.classes) == ((640, 640), ("red", "blue"))


def test_the_letterbox_is_undone(model: Path) -> None:
    image = planted((3, 1, RED), scale=20, wide=2)  # 1280 x 640: on the canvas its height is 32, from row 16 on
    assert _facts(deploykit.load(model)(image)) == [("red", [480, 160, 640, 320])]


def test_the_form_of_the_answer_follows_from_the_source(model: Path, tmp_path: Path) -> None:
    predict = deploykit.load(model)
    expected = [("red", [80, 160, 160, 240])]
    path = _file(tmp_path / "one.png", RED_AT_1_2)
    for source in (RED_AT_1_2, path, str(path), path.read_bytes()):
        result = predict(source)
        assert isinstance(result, Result)
        assert _facts(result) == expected
    listed = predict([path, RED_AT_1_2])
    assert isinstance(listed, list)
    assert [_facts(r) for r in listed] == [expected] * 2
    assert [r.image is None for r in listed] == [True, False]
    assert predict([]) == []


def test_folders_and_videos_give_iterators(model: Path, tmp_path: Path) -> None:
    predict = deploykit.load(model)
    (tmp_path / "images").mkdir()
    for column in (0, 3, 5):
        _file(tmp_path / "images" / f"{column}.png", planted((column, 0, RED)))
    results = predict.stream(tmp_path / "images")
    assert next(results).boxes[:, 0].tolist() == [0]
    assert [(Path(r.name).name, r.boxes[:, 0].tolist()) for r in results] == [("3.png", [24]), ("5.png", [40])]
    with Mp4Writer(tmp_path / "film.mp4", 25) as recorder:
        for column in (0, 3, 5):
            recorder.write(planted((column, 0, RED), scale=4))
    frames = list(predict.stream(tmp_path / "film.mp4"))
    assert [(r.frame, np.rint(r.boxes[0, 0] / 32)) for r in frames] == [(0, 0), (1, 3), (2, 5)]


def test_a_call_takes_one_image_or_a_list_and_names_stream_for_everything_else(model: Path, tmp_path: Path) -> None:
    predict = deploykit.load(model)
    image = _file(tmp_path / "a.png", RED_AT_1_2)
    assert [type(found) for found in predict([image, image.read_bytes(), RED_AT_1_2])] == [Result] * 3
    assert predict([]) == []
    (tmp_path / "a.mp4").write_bytes(b"")
    for source, kind in ((tmp_path, "folder"), (tmp_path / "a.mp4", "video"), ("0", "camera")):
        with pytest.raises(UsageError, match=rf"but .* is a {kind}: iterate over model\.stream\('{source}'\)"):
            predict(source)
        with pytest.raises(UsageError, match=f"is a {kind}"):
            predict([image, source])
    with pytest.raises(UsageError, match=r"model\.stream\(0\)"):
        predict(0)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="a Pillow image, a tensor, a camera number or a list, got dict"):
        predict({})  # type: ignore[call-overload]
    with pytest.raises(UsageError, match=r"a list of images may hold a path, .*, got float"):
        predict([image, 0.5])  # type: ignore[list-item]


def test_images_of_other_libraries_give_the_same_result_under_a_name(model: Path, tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    predict = deploykit.load(model)
    file = _file(tmp_path / "red.png", RED_AT_1_2)
    tensor = torch.from_numpy(np.ascontiguousarray(RED_AT_1_2[..., ::-1].transpose(2, 0, 1)))
    with file.open("rb") as opened, pillow.open(file) as image:
        images = [file, opened, image, image.convert("RGB"), tensor, tensor / 255, bytearray(file.read_bytes())]
        results = predict(images)
    assert [_facts(found) for found in results] == [[("red", [80, 160, 160, 240])]] * 7
    assert [found.name for found in results] == [str(file)] * 3 + ["image3", "image4", "image5", "image6"]
    assert predict(tensor).name == "image0"
    assert all(found.image is not None for found in results[1:])
    assert not (results[3].draw() == RED_AT_1_2).all()


def test_a_result_says_how_long_each_stage_took(model: Path, tmp_path: Path) -> None:
    path = _file(tmp_path / "one.png", RED_AT_1_2)
    timings = deploykit.load(model)(path).timings
    assert list(timings) == ["read", "letterbox", "inference", "postprocess"]
    assert all(ms > 0 for ms in timings.values())


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_static_dynamic_and_single_batches_agree(tmp_path: Path, half: bool) -> None:
    images = [planted((i, 7 - i, RED if i % 2 else BLUE), scale=i + 1) for i in range(6)]
    single = deploykit.load(write_cell_model(tmp_path / "1.onnx", spec=cell_spec(), half=half))
    static = deploykit.load(write_cell_model(tmp_path / "4.onnx", spec=cell_spec(batch=4), batch=4, half=half))
    spec = cell_spec(dynamic=True)
    dynamic = Predictor(
        open_session(write_cell_model(tmp_path / "d.onnx", spec=spec, batch="n", half=half)),
        options=PredictOptions(batch=5),
    )
    expected = [_facts(single(image)) for image in images]
    assert all(len(facts) == 1 for facts in expected)
    assert [_facts(r) for r in static(images)] == expected
    assert [_facts(r) for r in dynamic(images)] == expected
    assert (single.batch, static.batch, dynamic.batch) == (1, 4, 5)


def test_a_predictor_prints_its_file_task_input_and_device(model: Path) -> None:
    name = f"<Predictor {model.name}: keypoints, input 64x64, batch 1, on CPUExecutionProvider>"
    assert repr(deploykit.load(model)) == name
    free = [TensorInfo("images", (None, 3, None, None), "float32")]
    predict = Predictor(FakeSession(lambda x: {}, spec=_detect(), inputs=free))
    assert repr(predict) == "<Predictor: detect, input of any size, any batch, on fake>"


class _Shapes:
    """A fake network that remembers the shapes it was given and finds nothing."""

    def __init__(self, spec: ModelSpec) -> None:
        self.seen: list[tuple[int, ...]] = []
        self.predict = Predictor(FakeSession(self._answer, spec=spec))

    def _answer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.seen.append(inputs["images"].shape)
        return {"output": np.zeros((len(inputs["images"]), 1, 6), np.float32)}


def _detect(**changes: object) -> ModelSpec:
    values: dict = {"size": (960, 960), "fit": Fit(stride=64, auto=True), **changes}
    return ModelSpec("detect", InputSpec(**values), RawDetections())


def test_rectangles_are_for_dynamic_shapes_only() -> None:
    frame = np.zeros((1080, 1920, 3), np.uint8)
    for dynamic, shape in (("shape", (1, 3, 576, 960)), ("batch", (1, 3, 960, 960)), ("none", (1, 3, 960, 960))):
        network = _Shapes(_detect(dynamic=dynamic))
        network.predict(frame)
        assert network.seen == [shape]


def test_a_spec_with_a_fixed_shape_gets_its_canvas_even_if_the_network_would_take_any() -> None:
    seen: list[tuple[int, ...]] = []

    def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        seen.append(inputs["images"].shape)
        return {"output": np.zeros((1, 1, 6), np.float32)}

    anything = TensorInfo("images", (None, 3, None, None), "float32")
    Predictor(FakeSession(answer, spec=_detect(), inputs=[anything]))(np.zeros((1080, 1920, 3), np.uint8))
    assert seen == [(1, 3, 960, 960)]


def test_images_of_one_canvas_share_a_batch_and_keep_their_order() -> None:
    network = _Shapes(_detect(dynamic="shape", batch=3))
    wide, high = np.zeros((540, 960, 3), np.uint8), np.zeros((960, 540, 3), np.uint8)
    results = network.predict([wide, wide, high, high, high, high])
    assert [r.size for r in results] == [(540, 960)] * 2 + [(960, 540)] * 4
    assert network.seen == [(2, 3, 576, 960), (3, 3, 960, 576), (1, 3, 960, 576)]


def test_a_static_batch_is_filled_up() -> None:
    network = _Shapes(_detect(batch=4))
    assert len(network.predict([np.zeros((20, 20, 3), np.uint8)] * 5)) == 5
    assert network.seen == [(4, 3, 960, 960)] * 2


def test_an_unreadable_image_stops_a_call_but_a_stream_can_go_on(model: Path, tmp_path: Path) -> None:
    predict = deploykit.load(model)
    folder = tmp_path / "images"
    folder.mkdir()
    _file(folder / "a.png", RED_AT_1_2)
    (folder / "b.png").write_bytes(b"broken")
    _file(folder / "c.png", RED_AT_1_2)
    with pytest.raises(ImageError, match=r"b\.png"):
        list(predict.stream(folder))
    told: list[Exception] = []
    assert [Path(r.name).name for r in predict.stream(folder, skip=told.append)] == ["a.png", "c.png"]
    assert len(told) == 1
    with pytest.raises(NotFoundError, match=r"d\.png"):
        predict.stream(folder / "d.png")  # before the first result is asked for


def test_one_input_buffer_serves_images_of_one_size_and_is_let_go_with_the_predictor() -> None:
    """Fresh memory costs more than filling it."""
    fed: list[Array] = []

    def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        fed.append(inputs["images"])  # kept, so that an array in the same place is the same array
        return {"output": np.zeros((1, 4, 10), np.float32)}

    spec = cell_spec()
    predict = Predictor(FakeSession(answer, spec=spec))
    for _ in range(3):
        predict(RED_AT_1_2)
    assert fed[0] is fed[1] is fed[2]
    predict.close()
    wide = dataclasses.replace(spec, input=dataclasses.replace(spec.input, dynamic="shape", fit=Fit(auto=True)))
    with Predictor(FakeSession(answer, spec=wide)) as predict:
        for image in (RED_AT_1_2, RED_AT_1_2[:200], RED_AT_1_2[:200]):
            predict(image)
    assert fed[3].shape != fed[4].shape
    assert fed[4] is fed[5]


def test_a_call_inside_of_a_call_has_a_buffer_of_its_own() -> None:
    """What another thread does, without one: the buffer in use is not handed out again."""
    fed: list[Array] = []

    def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        fed.append(inputs["images"])
        if len(fed) == 3:
            before = inputs["images"].copy()
            predict(planted((6, 5, BLUE), scale=10))
            np.testing.assert_array_equal(inputs["images"], before)
        return {"output": np.zeros((1, 4, 10), np.float32)}

    predict = Predictor(FakeSession(answer, spec=cell_spec()))
    for _ in range(3):
        predict(RED_AT_1_2)
    assert len(fed) == 4
    assert not np.shares_memory(fed[2], fed[3])


def test_several_threads_get_their_own_answers(model: Path) -> None:
    predict = deploykit.load(model)
    images = [planted((i % 8, i // 8, RED), scale=5) for i in range(64)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(predict, images))
    assert [r.boxes[0, :2].tolist() for r in found] == [[40 * (i % 8), 40 * (i // 8)] for i in range(64)]


def test_boxes_are_clipped_to_the_image_and_keypoints_are_not() -> None:
    spec = ModelSpec(
        "keypoints",
        InputSpec(size=(64, 64)),
        RawDetections(keypoints=(6, 10), kpt_dims=2),
        ("a",),
        KeypointSpec(("p", "q")),
    )
    row = np.array([[[32, 32, 200, 100, 1, 0.9, -10, 70, 5, 5]]], np.float32)
    result = Predictor(FakeSession(lambda _: {"output": row}, spec=spec))(np.zeros((64, 128, 3), np.uint8))
    assert result.boxes.tolist() == [[0, 0, 128, 64]]
    assert result.keypoints is not None
    assert result.keypoints.tolist() == [[[-20, 108, 1], [10, -22, 1]]]  # v is 1 where the network gives none


def test_mapping_to_source_does_not_change_the_detections() -> None:
    points = np.ones((1, 2, 3), np.float32)
    found = NetworkDetections(np.ones((1, 4), np.float32), np.ones(1, np.float32), np.zeros(1, np.int64), points, 1)
    _, mapped, _ = to_source(found, Letterbox.fit((32, 64), (64, 64), Fit()))
    assert mapped is not None
    assert mapped[0, 0].tolist() == [1, -15, 1]
    assert (points == 1).all()


def test_thresholds_of_the_call_replace_those_of_the_spec(model: Path) -> None:
    grey = planted(*[(i, 0, (0, 0, 60 + 24 * i)) for i in range(8)])
    assert len(deploykit.load(model)(grey)) == 5  # scores are squares: from (156 / 255)^2 on over 0.25
    assert len(deploykit.load(model, conf=0.9)(grey)) == 0
    assert len(deploykit.load(model, conf=0.05)(grey)) == 8
    assert len(deploykit.load(model, max_det=2)(grey)) == 2
    with pytest.raises(UsageError, match=r"iou must lie in 0\.\.1, got 1\.5"):
        deploykit.load(model, iou=1.5)


TWO_REDS_AND_A_BLUE = planted((1, 2, RED), (6, 2, RED), (5, 5, BLUE))


def test_classes_by_name_or_number_leave_the_places_to_the_wanted(model: Path) -> None:
    for wanted in (["blue"], ["BLUE"], [1], ["1"], ("blue", 1)):
        found = deploykit.load(model, classes=wanted, max_det=1)(TWO_REDS_AND_A_BLUE)
        assert [d.name for d in found] == ["blue"]
    assert len(deploykit.load(model, classes=["red", "blue"])(TWO_REDS_AND_A_BLUE)) == 3
    for wanted, words in (
        (["bleu"], "no class 'bleu'; did you mean 'blue'\\? it has 2, 0 to 1: red, blue"),
        ([2], "no class 2; it has 2, 0 to 1: red, blue"),
        ([-1], "no class -1; it has 2"),
        ([], "must be a list of names or numbers"),
        ("red", "must be a list of names or numbers, got 'red'"),
    ):
        with pytest.raises(UsageError, match=words):
            deploykit.load(model, classes=wanted)


def test_a_network_with_nms_inside_is_filtered_afterwards_and_says_so() -> None:
    session = FakeSession(lambda _: _nms_outputs(), spec=NMS_SPEC)
    usual = Predictor(session)
    label = int(usual(np.zeros((64, 64, 3), np.uint8)).labels[-1])
    predict = Predictor(session, options=PredictOptions(classes=[label], max_det=1))
    assert predict(np.zeros((64, 64, 3), np.uint8)).labels.tolist() == [label]
    assert "chooses at most" in predict.notes[-1]
    assert usual.notes == ()
    with pytest.raises(UsageError, match="agnostic: this network chooses its objects itself, within each class"):
        Predictor(session, options=PredictOptions(agnostic=True))


def test_every_nth_frame_keeps_its_number(model: Path, tmp_path: Path) -> None:
    with Mp4Writer(tmp_path / "film.mp4", 25) as recorder:
        for column in range(7):
            recorder.write(planted((column, 0, RED), scale=4))
    frames = list(deploykit.load(model, every=3).stream(tmp_path / "film.mp4"))
    assert [(r.frame, np.rint(r.boxes[0, 0] / 32)) for r in frames] == [(0, 0), (3, 3), (6, 6)]
    with pytest.raises(UsageError, match="every must be at least 1, got 0"):
        deploykit.load(model, every=0)


def test_more_candidates_than_nms_considers_are_reported(model: Path) -> None:
    spec = dataclasses.replace(cell_spec(), thresholds=Thresholds(pre_nms_topk=2))
    predict = deploykit.load(model, spec=spec)
    assert predict(planted((0, 0, RED), (3, 0, RED), (5, 0, RED))).truncated
    assert not predict(planted((0, 0, RED), (3, 0, RED))).truncated


def _nms_outputs(count: int = 2) -> dict[str, Array]:
    return {
        "num_dets": np.array([[count]], np.int32),
        "boxes": np.array([[[8, 8, 16, 24], [0, 0, 64, 64], [0, 0, 0, 0]]], np.float32),
        "scores": np.array([[0.9, 0.3, 0]], np.float32),
        "labels": np.array([[1, 0, 0]], np.int32),
        "keypoints": np.arange(18, dtype=np.float32).reshape(1, 3, 2, 3) * np.float32([1, 1, 1 / 16]),
        "num_candidates": np.array([[1500]], np.int32),
    }


NMS_SPEC = ModelSpec(
    "keypoints",
    InputSpec(size=(64, 64)),
    NmsOutputs(keypoints="keypoints"),
    ("a", "b"),
    KeypointSpec(("p", "q")),
    Thresholds(max_det=3),
)


def test_nms_outputs_become_the_same_kind_of_result() -> None:
    result = Predictor(FakeSession(lambda _: _nms_outputs(), spec=NMS_SPEC))(np.zeros((128, 128, 3), np.uint8))
    assert result.boxes.tolist() == [[16, 16, 32, 48], [0, 0, 128, 128]]
    assert (result.labels.tolist(), result.scores.tolist()) == ([1, 0], pytest.approx([0.9, 0.3]))
    assert result.keypoints is not None
    assert result.keypoints[0].tolist() == [[0, 2, 2 / 16], [6, 8, 5 / 16]]
    assert result.truncated


def test_what_nms_inside_the_network_has_decided_cannot_be_undone() -> None:
    session = FakeSession(lambda _: _nms_outputs(), spec=NMS_SPEC)
    image = np.zeros((64, 64, 3), np.uint8)
    assert len(Predictor(session, options=PredictOptions(conf=0.5))(image)) == 1
    assert len(Predictor(session, options=PredictOptions(max_det=1))(image)) == 1
    for wish in ({"conf": 0.1}, {"iou": 0.6}, {"iou": 0.3}, {"max_det": 4}):
        with pytest.raises(UsageError, match=f"inside this network with {next(iter(wish))}"):
            Predictor(session, options=PredictOptions(**wish))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_dets": np.array([[9]], np.int32)}, r"'num_dets' must lie in 0\.\.3, got 9"),
        ({"scores": np.zeros((1, 7), np.float32)}, r"'scores' must be \(batch, 3\), got \(1, 7\)"),
        ({"keypoints": np.zeros((1, 3, 5, 3), np.float32)}, r"'keypoints' must be \(batch, 3, 2, 3\)"),
        ({"boxes": np.zeros((0, 3, 4), np.float32)}, r"'boxes' must be \(batch, \?, 4\)"),
    ],
)
def test_nms_outputs_of_another_shape_are_refused(changes: dict, words: str) -> None:
    predict = Predictor(FakeSession(lambda _: {**_nms_outputs(), **changes}, spec=NMS_SPEC))
    with pytest.raises(BackendError, match=words):
        predict(np.zeros((64, 64, 3), np.uint8))


def _with_input(**changes: object) -> ModelSpec:
    spec = cell_spec()
    return dataclasses.replace(spec, input=dataclasses.replace(spec.input, **changes))  # type: ignore[arg-type]


def _with_output(**changes: object) -> ModelSpec:
    spec = cell_spec()
    return dataclasses.replace(spec, output=dataclasses.replace(spec.output, **changes))  # type: ignore[arg-type, type-var]


def test_a_task_that_the_output_does_not_serve_is_refused() -> None:
    with pytest.raises(SpecError, match=r"must be one of detect, keypoints, .* got 'segment'"):
        dataclasses.replace(cell_spec(), task="segment")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (_with_input(name="data"), "input is 'data', but the network has 'images'"),
        (_with_input(size=(64, 96)), r"\(1, 3, 64, 96\), but the network takes float32 \(1, 3, 64, 64\)"),
        (_with_input(batch=2), r"\(2, 3, 64, 64\), but the network takes"),
        (_with_input(channels=4, mean=(0.0,) * 4, std=(1.0,) * 4), r"is \(1, 4, 64, 64\), but the network takes"),
        (_with_input(fit=Fit(kind="crop")), "letterbox or resize, but the spec's fit is 'crop'"),
        (_with_output(name="rows"), "output 'rows', the network has 'output'"),
        (
            ModelSpec("detect", cell_spec().input, RawDetections(cls=(5, 20))),
            r"\(batch, rows, 20 columns\), the network gives",
        ),
        (ModelSpec("detect", cell_spec().input, NmsOutputs()), "output 'num_dets', the network has 'output'"),
    ],
)
def test_a_spec_that_does_not_fit_the_network_is_refused_before_any_image(
    model: Path, spec: ModelSpec, words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        deploykit.load(model, spec=spec)


def test_inputs_that_are_not_floating_point_are_refused() -> None:
    info = TensorInfo("images", (1, 3, 64, 64), "uint8")
    with pytest.raises(SpecError, match="must be float32 or float16"):
        Predictor(FakeSession(lambda _: {}, spec=cell_spec(), inputs=[info]))


def test_a_batch_that_the_network_does_not_take_is_refused(model: Path) -> None:
    with pytest.raises(UsageError, match="a fixed batch of 1, got 2"):
        Predictor(open_session(model), options=PredictOptions(batch=2))


def test_rows_with_too_few_columns_are_refused() -> None:
    predict = Predictor(FakeSession(lambda _: {"output": np.zeros((1, 4, 8), np.float32)}, spec=cell_spec()))
    with pytest.raises(SpecError, match=r"needs an output of 3 axes \(batch, rows, 10 columns\), .* is \(1, 4, 8\)"):
        predict(RED_AT_1_2)


def test_a_foreign_model_takes_its_spec_from_a_file(tmp_path: Path) -> None:
    bare = write_cell_model(tmp_path / "bare.onnx")
    with pytest.raises(
        SpecError, match=r"bare\.onnx carries no deploykit spec, and the file does not tell task and output"
    ):
        deploykit.load(bare)
    (tmp_path / "spec.json").write_text(cell_spec().to_json())
    assert _facts(deploykit.load(bare, spec=tmp_path / "spec.json")(RED_AT_1_2)) == [("red", [80, 160, 160, 240])]
    (tmp_path / "spec.json").write_text(json.dumps({"task": "keypoints", "inputs": {}}))
    with pytest.raises(SpecError, match=r"spec\.json: spec has no field 'inputs'"):
        deploykit.load(bare, spec=tmp_path / "spec.json")
    with pytest.raises(SpecError, match="expected a spec as a JSON text file"):
        deploykit.load(bare, spec=bare)
    with pytest.raises(NotFoundError, match="a spec was expected at"):
        deploykit.load(bare, spec=tmp_path / "none.json")


def test_a_checkpoint_without_torch_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFoundError, match="a checkpoint was expected"):
        deploykit.load(tmp_path / "model.pt")
    (tmp_path / "model.pt").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"deploykit-vision\[export\]"):
        deploykit.load(tmp_path / "model.pt")
    with pytest.raises(UsageError, match="runs in torch"):
        deploykit.open_session(tmp_path / "model.pt", backend="onnxruntime")


def test_leaving_the_context_closes_the_session(model: Path) -> None:
    with deploykit.load(model) as predict:
        predict(RED_AT_1_2)
    with pytest.raises(BackendError, match="closed"):
        predict(RED_AT_1_2)


def test_predicting_from_onnx_loads_neither_torch_nor_onnx(model: Path, tmp_path: Path) -> None:
    path = _file(tmp_path / "one.png", RED_AT_1_2)
    code = f"""
import sys, deploykit
result = deploykit.load({str(model)!r})({str(path)!r})
result.save({str(tmp_path / "drawn.png")!r})
assert len(result) == 1
print(sorted({{"torch", "onnx", "rich", "supervision"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
