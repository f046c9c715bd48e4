"""NMS in the graph against its definition: the part in PyTorch that chooses, and the part in ONNX that decides."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.export.nms.candidates import Candidates, RowSelection, with_candidate_head
from deploykit.export.nms.graph import append_nms
from deploykit.models.fuse import fuse_model
from deploykit.models.layers.operators import best_scores
from deploykit.runtime.arrays import Array
from deploykit.spec import InputSpec, KeypointSpec, ModelSpec, NmsOutputs, RawDetections, Thresholds
from tests import rotated_corpus
from tests.narrow import model_of
from tests.nms_corpus import Case, Kept, Rows, candidates, corpus, reference
from tests.runtime.postprocess.test_nms import problems

CORPUS = corpus()
MODES = ("graph", "basic")


def with_row_numbers(rows: Rows, layout: RawDetections) -> tuple[Rows, RawDetections]:
    """The rows with one more keypoint, which is the row's number: so a detection tells which row it was.

    An image without rows gets one that does not exist, because a graph has at least one.
    """
    if not len(rows):
        rows = np.full((1, layout.columns), np.nan, np.float32)
    numbers = np.zeros((len(rows), 3), np.float32)
    numbers[:, 0] = np.arange(len(rows))
    bare = rows[:, : layout.columns].astype(np.float32)
    return np.concatenate((bare, numbers), 1), replace(
        layout, keypoints=(layout.columns, layout.columns + 3), kpt_dims=3
    )


def spec_for(layout: RawDetections, thresholds: Thresholds) -> ModelSpec:
    classes = tuple(str(i) for i in range(layout.cls[1] - layout.cls[0]))
    output = NmsOutputs(keypoints="keypoints", angles="angles" if layout.angle else None)
    task = "oriented" if layout.angle else "keypoints"
    return ModelSpec(task, InputSpec(), output, classes, KeypointSpec(("row",)), thresholds=thresholds)


@cache
def session_for(mode: str, layout: RawDetections, thresholds: Thresholds, k: int) -> onnxruntime.InferenceSession:
    """The decision alone, as a model that takes the candidates."""
    shapes = {"boxes": ("b", k, 4), "scores": ("b", k), "labels": ("b", k), "all_scores": ("b", "n")}
    kinds = {"labels": ir.DataType.INT64}
    values = [
        ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(kinds.get(name, ir.DataType.FLOAT)))
        for name, shape in {**shapes, "keypoints": ("b", k, 1, 3), "angles": ("b", k, int(bool(layout.angle)))}.items()
    ]
    graph = ir.Graph(values, values, nodes=[], opset_imports={"": 18}, name="decide")
    model = ir.Model(graph, ir_version=10)
    append_nms(model, mode, spec_for(layout, thresholds), k)
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])


def decided(mode: str, images: list[Rows], layout: RawDetections, thresholds: Thresholds) -> list[list[Kept]]:
    """What stays in each image of a batch; images with fewer rows get rows that do not exist."""
    numbered = [with_row_numbers(rows, layout) for rows in images]
    most = max(len(rows) for rows, _ in numbered)
    padded = [np.pad(rows, ((0, most - len(rows)), (0, 0)), constant_values=np.nan) for rows, _ in numbered]
    wide = numbered[0][1]
    k = min(thresholds.pre_nms_topk, most)
    chosen = RowSelection(wide, k)(torch.from_numpy(np.stack(padded)))
    session = session_for(mode, wide, thresholds, k)
    taken = {info.name for info in session.get_inputs()}  # no masks
    feed = {f"candidate_{name}": value.numpy() for name, value in chosen._asdict().items()}
    outputs = session.run(None, {name: value for name, value in feed.items() if name in taken})
    names = ("num_dets", "boxes", "scores", "labels", "keypoints", *["angles"] * bool(layout.angle), "num_candidates")
    found: dict[str, Array] = dict(zip(names, outputs, strict=True))
    results = []
    for i, (rows, _) in enumerate(numbered):
        count = int(found["num_dets"][i, 0])
        for name in names[1:-1]:
            assert not found[name][i, count:].any(), f"an empty slot of {name} is not zero"
        assert found["num_candidates"][i, 0] == len(candidates(rows, layout, thresholds))
        with np.errstate(all="ignore"):
            box = rows[:, slice(*layout.box)]
            corners = np.concatenate((box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2), 1)
        kept = []
        for j in range(count):
            row = int(found["keypoints"][i, j, 0, 0])
            np.testing.assert_array_equal(found["boxes"][i, j], box[row] if layout.angle else corners[row])
            if layout.angle:
                assert found["angles"][i, j] == rows[row, layout.angle[0]]
            kept.append(Kept(row, int(found["labels"][i, j]), float(found["scores"][i, j])))
        results.append(kept)
    return results


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CORPUS, ids=lambda c: c.name)
def test_the_corpus_agrees_in_rows_labels_and_every_bit(case: Case, mode: str) -> None:
    (found,) = decided(mode, [case.rows], case.layout, case.thresholds)
    assert found == reference(case.rows, case.layout, case.thresholds)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", rotated_corpus.corpus(), ids=lambda c: c.name)
def test_the_corpus_of_oriented_boxes_agrees_in_rows_labels_and_scores(case: Case, mode: str) -> None:
    (found,) = decided(mode, [case.rows], case.layout, case.thresholds)
    assert found == rotated_corpus.reference(case.rows, case.layout, case.thresholds)


@given(seed=st.integers(0, 2**32), count=st.integers(1, 40), iou=st.floats(0.05, 0.95))
@settings(max_examples=30)
def test_any_oriented_boxes_agree_where_float32_can_tell(seed: int, count: int, iou: float) -> None:
    random = np.random.default_rng(seed)
    rows = np.zeros((count, rotated_corpus.TWO.columns), np.float32)
    rows[:, :2], rows[:, 2:4] = random.uniform(0, 90, (count, 2)), 10 ** random.uniform(0, 2, (count, 2))
    rows[:, 4:6], rows[:, 6] = random.uniform(0, 1, (count, 2)).round(1), random.uniform(-4, 4, count)
    thresholds = Thresholds(conf=0.3, iou=iou, pre_nms_topk=40)
    if rotated_corpus.surely(rows, rotated_corpus.TWO, thresholds):
        (found,) = decided("basic", [rows], rotated_corpus.TWO, thresholds)
        assert found == rotated_corpus.reference(rows, rotated_corpus.TWO, thresholds)


@pytest.mark.parametrize("mode", MODES)
@given(problem=problems())
@settings(max_examples=30)
def test_any_rows_agree(mode: str, problem: tuple[Rows, RawDetections, Thresholds]) -> None:
    rows, layout, thresholds = problem
    (found,) = decided(mode, [rows], layout, thresholds)
    assert found == reference(rows, layout, thresholds)


@pytest.mark.parametrize("mode", MODES)
def test_images_of_a_batch_do_not_see_each_other(mode: str) -> None:
    rng = np.random.default_rng(0)
    layout, thresholds = RawDetections(cls=(5, 8)), Thresholds(conf=0.2, iou=0.4, max_det=7, pre_nms_topk=50)
    images = []
    for count in (60, 1, 0, 33):
        rows = rng.random((count, 8)).astype(np.float32)
        rows[:, :4] *= 10
        images.append(rows)
    for found, rows in zip(decided(mode, images, layout, thresholds), images, strict=True):
        assert found == reference(rows, layout, thresholds)


@pytest.mark.parametrize("mode", MODES)
def test_a_chain_as_long_as_the_list_is_settled(mode: str) -> None:
    """Each box overlaps only its neighbours, so that every second one stays; a fixed number of rounds would not do."""
    count = 300
    rows = np.zeros((count, 6), np.float32)
    rows[:, 0], rows[:, 1], rows[:, 2:4] = np.arange(count) * 5, 50, 10
    rows[:, 4], rows[:, 5] = 1, np.linspace(0.9, 0.5, count)
    thresholds = Thresholds(conf=0.25, iou=0.3, max_det=300, pre_nms_topk=300)
    (found,) = decided(mode, [rows], RawDetections(), thresholds)
    assert [k.row for k in found] == list(range(0, count, 2))


def test_the_operator_takes_the_lower_index_first() -> None:
    scores = torch.tensor([[0.5, 0.75, 0.5, 0.75, 0.75, 0.25]])
    values, index = best_scores(scores, 4)
    assert index.tolist() == [[1, 3, 4, 0]]
    assert values.tolist() == [[0.75, 0.75, 0.75, 0.5]]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("few", {}),
        ("few", {"num_keypoints": 3}),
        ("yolov7_w6_pose", {"num_keypoints": 4, "num_classes": 2}),
        ("yolov7_tiny", {"training": True}),
        ("few", {"num_classes": 1, "cls_counts": False}),
        ("few", {"num_classes": 1, "num_keypoints": 3, "cls_counts": False}),
    ],
)
def test_cells_chosen_in_the_head_are_the_rows_that_decoding_everything_gives(
    name: str, options: dict[str, object]
) -> None:
    model = model_of(name, objectness=3.0, **{key: value for key, value in options.items() if key != "cls_counts"})
    fused = fuse_model(model.module)
    layout = model.spec.output
    assert isinstance(layout, RawDetections)
    layout = replace(layout, cls_counts=bool(options.get("cls_counts", True)))
    images = torch.from_numpy(np.random.default_rng(1).random((2, 3, 64, 128), np.float32))
    with torch.inference_mode():
        rows = fused(images)
        for count in (1, 40, rows.shape[1]):
            expected, found = RowSelection(layout, count)(rows), with_candidate_head(fused, layout, count)(images)
            for part in Candidates._fields:
                torch.testing.assert_close(getattr(found, part), getattr(expected, part), rtol=1e-6, atol=1e-4)
            assert (found.labels == expected.labels).all()


def test_a_cell_that_is_no_number_is_never_chosen() -> None:
    model = model_of("few", num_keypoints=3, objectness=3.0)
    fused = fuse_model(model.module)
    head = fused.head
    layout = model.spec.output
    assert isinstance(layout, RawDetections)
    raw = head.raw

    def damaged(x: torch.Tensor, level: int) -> torch.Tensor:
        values = raw(x, level).clone()
        if level == 0:
            values[:, -1, 0, 0] = torch.inf  # the last anchor's last keypoint
            values[:, 0, 1, 1] = torch.nan
        return values

    head.raw = damaged  # type: ignore[method-assign]
    with torch.inference_mode():
        chosen = with_candidate_head(fused, layout, 20)(torch.rand(1, 3, 64, 64))
    area = 64 // head.stride[0]
    dead = [1 * area + 1, 2 * area * area]
    assert (chosen.all_scores[0, dead] == -1).all()
    assert int((chosen.all_scores == -1).sum()) == len(dead)
    assert all(torch.isfinite(part).all() for part in chosen)
