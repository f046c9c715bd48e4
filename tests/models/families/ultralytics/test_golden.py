"""Files that the ultralytics package itself wrote give its numbers, unfolded and folded, by each branch of a head."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from deploykit.models.fuse import fuse_model
from deploykit.models.load_options import LoadOptions
from deploykit.models.registry import ReferenceModel, load_model
from deploykit.spec import EndToEndRows, RawDetections

pytestmark = pytest.mark.data
GOLDEN = Path(__file__).resolve().parents[5] / "shared" / "golden"
BODIES = ("yolov8", "yolo11", "yolo26", "yolo12", "yolov10", "yolov9", "yolov5nu")
Array = NDArray[Any]

# name -> family, task and whether its head has two branches
FILES: dict[str, tuple[str, str, bool]] = {
    "yolov8n-detect-narrow": ("YOLOv8", "detect", False),
    "yolov8n-detect-fused-narrow": ("YOLOv8", "detect", False),
    "yolov8n-detect-by-8.0.0": ("YOLOv8", "detect", False),
    "yolov8n-detect-by-8.3.0": ("YOLOv8", "detect", False),
    "yolov8n-detect-by-8.4.60": ("YOLOv8", "detect", False),
    "yolov8n-pose-narrow": ("YOLOv8", "keypoints", False),
    "yolov8n-face-5x2-last": ("YOLOv8", "keypoints", False),
    "yolov8n-face-5x2-by-8.0.120": ("YOLOv8", "keypoints", False),
    "yolov8n-seg-narrow": ("YOLOv8", "instances", False),
    "yolov8n-seg-by-8.1.0": ("YOLOv8", "instances", False),
    "yolov8n-obb-narrow": ("YOLOv8", "oriented", False),
    "yolov8n-cls-narrow": ("YOLOv8", "classify", False),
    "yolo11n-detect-narrow": ("YOLO11", "detect", False),
    "yolo11m-detect-narrow": ("YOLO11", "detect", False),
    "yolo11n-pose-narrow": ("YOLO11", "keypoints", False),
    "yolo26n-detect-narrow": ("YOLO26", "detect", True),
    "yolo26n-pose-narrow": ("YOLO26", "keypoints", True),
    "yolo26n-seg-narrow": ("YOLO26", "instances", True),
    "yolov10n-narrow": ("YOLOv10", "detect", True),
    "yolo12n-narrow": ("YOLO12", "detect", False),
    "yolov9t-narrow": ("YOLOv9", "detect", False),
    "yolov5nu-narrow": ("YOLOv5u", "detect", False),
}
ALL = pytest.mark.parametrize("name", FILES)
DUAL = pytest.mark.parametrize("name", [name for name, (*_, dual) in FILES.items() if dual])
FOLDED = pytest.mark.parametrize("folded", [False, True], ids=["as trained", "folded"])

UNITS = 1e-3, 1e-5, 1e-4
"""What is allowed between two programs in float32: pixels, probabilities, and what is neither (of single values)."""

MORE_WHERE_FOLDED = 5.0
"""Folding rounds the weights once more: the package's own two forms differ by up to 1.5e-3 px."""


@cache
def model_of(name: str, head: Any = None) -> ReferenceModel:
    return load_model(GOLDEN / f"{name}.pt", loading=LoadOptions(head=head))


@cache
def recorded(name: str) -> dict[str, Array]:
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def outputs(module: nn.Module, images: Array, kind: torch.dtype = torch.float32) -> tuple[Array, ...]:
    """Each output of a network, in float64."""
    with torch.inference_mode():
        found = module.to(kind)(torch.from_numpy(images).to(kind))
    module.float()
    return tuple(each.double().numpy() for each in (found if isinstance(found, tuple) else (found,)))


def limits_of(output: RawDetections | EndToEndRows, columns: int) -> Array:
    """The limit of each column of a network's rows."""
    pixels, probability, other = UNITS
    found = np.full(columns, other)
    found[:4] = pixels
    if isinstance(output, EndToEndRows):
        found[4:6] = probability, 0.0
    else:
        found[slice(*output.cls)] = probability
    if output.keypoints is not None:
        points = found[slice(*output.keypoints)].reshape(-1, output.kpt_dims)
        points[:] = (pixels, pixels, probability)[: output.kpt_dims]
    return found


def share(found: Array, expected: Array, limits: Array | float) -> float:
    """The worst difference as a share of its limit."""
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    return float((np.abs(found - expected) / limits).max())


def share_of_sets(found: Array, expected: Array, limits: Array) -> float:
    """The same of rows of which those with nearly equal scores may change places, and the last may be others.

    Each row above the last scores has one partner in the other set, of the same class; infinity: it has none.
    """
    assert found.shape == expected.shape
    worst, numbers = 0.0, [c for c in range(found.shape[2]) if c != 5]
    for own, its in zip(found, expected, strict=True):
        far = np.abs(own[None, :, numbers] - its[:, None, numbers]) / limits[numbers]
        distance = np.where(own[None, :, 5] == its[:, None, 5], far.max(2), np.inf)
        sure = its[:, 4] > max(own[-1, 4], its[-1, 4]) + limits[4]
        assert sure.sum() > len(its) // 2
        partners = distance.argmin(1)[sure]
        worst = max(worst, distance.min(1)[sure].max() if len(set(partners.tolist())) == len(partners) else np.inf)
    return float(worst)


def assert_agrees(
    module: nn.Module, images: Array, place: int, expected: Array, error: Callable[[Array, Array], float]
) -> None:
    """One output of a network that is as close to the recorded one as float32 allows; 1 is the limit of an error.

    Where it is not within the limits, it is no farther from the same network in float64 than they allow, or than the
    recorded one is, and that one is right to three times the limits.
    """
    found, expected = outputs(module, images)[place], expected.astype(np.float64)
    if error(found, expected) <= 1.0:
        return
    exact = outputs(module, images, torch.float64)[place]
    assert error(expected, exact) <= 3.0
    assert error(found, exact) <= max(1.0, error(expected, exact))


def test_every_file_of_the_package_is_compared() -> None:
    assert {path.stem for path in GOLDEN.glob("*.pt") if path.stem.startswith(BODIES)} == {*FILES}


@ALL
def test_a_file_says_what_it_is(name: str) -> None:
    model = model_of(name)
    family, task, dual = FILES[name]
    assert (model.family, model.spec.task) == (family, task)
    assert model.choices == (("head",) if dual else ())
    assert not any("activations" in text for text in model.spec.assumptions), "its pickled modules are read"


@FOLDED
@ALL
def test_the_packages_own_output_is_reproduced(name: str, folded: bool) -> None:
    dual = FILES[name][2]
    model, golden = model_of(name, "one2many" if dual else None), recorded(name)
    module, output, images = fuse_model(model.module) if folded else model.module, model.spec.output, golden["images"]
    more = MORE_WHERE_FOLDED if folded else 1.0
    for_others = partial(share, limits=more * UNITS[2])
    if not isinstance(output, RawDetections):
        assert_agrees(module, images, 0, golden["logits"], for_others)
        return
    expected = golden["output_one2many" if dual else "output"].transpose(0, 2, 1)
    assert_agrees(module, images, 0, expected, partial(share, limits=more * limits_of(output, expected.shape[2])))
    assert ("protos" in golden) == (model.spec.task == "instances")
    if "protos" in golden:
        assert_agrees(module, images, 1, golden["protos"], for_others)


@FOLDED
@DUAL
def test_the_branch_without_nms_gives_the_packages_rows(name: str, folded: bool) -> None:
    model, golden = model_of(name), recorded(name)
    module, output, images = fuse_model(model.module) if folded else model.module, model.spec.output, golden["images"]
    assert isinstance(output, EndToEndRows)
    more = MORE_WHERE_FOLDED if folded else 1.0
    limits = more * limits_of(output, golden["output"].shape[2])
    assert_agrees(module, images, 0, golden["output"], partial(share_of_sets, limits=limits))
    assert (np.diff(outputs(module, images)[0][..., 4]) <= 0).all(), "the best come first"
    if "protos" in golden:
        assert_agrees(module, images, 1, golden["protos"], partial(share, limits=more * UNITS[2]))


def test_a_set_of_rows_with_one_lost_doubled_or_moved_is_another() -> None:
    chance = np.random.default_rng(0)
    rows = np.concatenate((chance.uniform(0, 100, (30, 4)), chance.uniform(0.1, 1, (30, 1)), np.zeros((30, 1))), 1)
    rows = rows[rows[:, 4].argsort()[::-1]]
    limits = np.array([1e-3] * 4 + [1e-5, 0.0])
    assert share_of_sets(rows[[1, 0, *range(2, 30)]][None], rows[None], limits) == 0.0
    wrong_class, moved, doubled = rows.copy(), rows.copy(), rows.copy()
    wrong_class[3, 5], moved[3, 0], doubled[3] = 1, moved[3, 0] + 2e-3, doubled[2]
    for changed in (wrong_class, moved, doubled):
        assert share_of_sets(changed[None], rows[None], limits) > 1.0


def test_softmax_of_the_logits_is_the_packages_output() -> None:
    golden = recorded("yolov8n-cls-narrow")
    (logits,) = outputs(model_of("yolov8n-cls-narrow").module, golden["images"])
    powers = np.exp(logits - logits.max(1, keepdims=True))
    assert share(powers / powers.sum(1, keepdims=True), golden["output"], 1e-6) <= 1.0


def test_the_same_weights_without_the_activation_of_sppf_are_another_network() -> None:
    """Only the pickled module tells: both files have the same tensors, description and classes."""
    models = [model_of(f"yolov8n-detect-{form}") for form in ("narrow", "by-8.4.60")]
    states = [model.module.state_dict() for model in models]
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())
    images = recorded("yolov8n-detect-narrow")["images"]
    first, second = (outputs(model.module, images)[0] for model in models)
    assert np.abs(first - second)[..., :4].max() > 100
    assert [any("release" in note and "SPPF" in note for note in model.notes) for model in models] == [False, True]
