"""Decode in torch against the published equations, cell by cell."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deploykit.models.create.random_weights import randomise
from deploykit.models.fuse import fuse_model
from deploykit.models.layers.anchor_head import Detect, IAuxDetect, IDetect, IKeypoint, Keypoint
from deploykit.models.layers.pose_object import PoseObject
from tests.reference.heads import decode, decode_pose_objects, head
from tests.reference.layers import Weights

ANCHORS = ((12, 16, 19, 36, 40, 28), (36, 75, 76, 55, 72, 146))
CHANNELS, STRIDES = (6, 10), (8, 16)
PIXELS, PROBABILITY = 1e-3, 1e-5


def features_of(*channels: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(2, c, 6 // (1 + i % 2), 4 // (1 + i % 2), generator=generator) for i, c in enumerate(channels)]


def weights_of(module: Detect) -> Weights:
    return {f"head.{key}": t.double().numpy() for key, t in module.state_dict().items()}


def prepared(module: Detect) -> Detect:
    torch.manual_seed(5)
    module.set_stride(STRIDES[: module.num_levels])
    randomise(module)
    return module.eval()


def assert_rows_agree(found: np.ndarray, expected: np.ndarray, num_classes: int) -> None:
    assert found.shape == expected.shape
    columns = np.arange(found.shape[-1])
    after = columns - 5 - num_classes
    probability = ((columns >= 4) & (after < 0)) | ((after >= 0) & (after % 3 == 2))
    error = np.abs(found - expected)
    assert error[..., probability].max() <= PROBABILITY
    assert (error[..., ~probability] <= PIXELS + 1e-5 * np.abs(expected[..., ~probability])).all()


@pytest.mark.parametrize("fused", [False, True], ids=["trained form", "folded"])
@pytest.mark.parametrize("num_classes", [1, 4])
@pytest.mark.parametrize("kind", [Detect, IDetect, IAuxDetect])
def test_boxes_are_decoded_by_the_equations(kind: type[Detect], num_classes: int, fused: bool) -> None:
    channels = CHANNELS * 2 if kind is IAuxDetect else CHANNELS
    module = prepared(kind(num_classes, ANCHORS, channels))
    features = features_of(*channels)
    expected = head([f.double().numpy() for f in features], weights_of(module), "head", ANCHORS, STRIDES, num_classes)
    with torch.no_grad():
        found = (fuse_model(module) if fused else module)(*features).numpy()
    assert_rows_agree(found, expected, num_classes)


@pytest.mark.parametrize("fused", [False, True], ids=["trained form", "folded"])
@pytest.mark.parametrize("depthwise", [False, True], ids=["plain branch", "depthwise branch"])
@pytest.mark.parametrize(("num_classes", "num_keypoints"), [(1, 17), (2, 4), (1, 5)])
@pytest.mark.parametrize("kind", [Keypoint, IKeypoint])
def test_keypoints_are_decoded_by_the_equations(
    kind: type[Keypoint], num_classes: int, num_keypoints: int, depthwise: bool, fused: bool
) -> None:
    module = prepared(kind(num_classes, ANCHORS, CHANNELS, num_keypoints, depthwise))
    features = features_of(*CHANNELS)
    arrays = [f.double().numpy() for f in features]
    expected = head(arrays, weights_of(module), "head", ANCHORS, STRIDES, num_classes, keypoints=True)
    with torch.no_grad():
        found = (fuse_model(module) if fused else module)(*features).numpy()
    assert found.shape[-1] == 5 + num_classes + 3 * num_keypoints
    assert_rows_agree(found, expected, num_classes)


@settings(max_examples=30)
@given(
    num_classes=st.integers(1, 4),
    num_keypoints=st.integers(0, 5),
    anchors=st.lists(st.integers(1, 500), min_size=2, max_size=8).filter(lambda a: len(a) % 2 == 0),
    sides=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.sampled_from([4, 8, 16, 32, 64]),
    seed=st.integers(0, 99),
)
def test_any_level_is_decoded_by_the_equations(
    num_classes: int, num_keypoints: int, anchors: list[int], sides: tuple[int, int], stride: int, seed: int
) -> None:
    module = (
        Keypoint(num_classes, [anchors], [1], num_keypoints) if num_keypoints else Detect(num_classes, [anchors], [1])
    )
    module.set_stride([stride])
    generator = torch.Generator().manual_seed(seed)
    raw = 4 * torch.randn(2, len(anchors) // 2 * module.columns, *sides, generator=generator)
    expected = decode(raw.double().numpy(), anchors, stride, num_classes)
    assert_rows_agree(module.decode(raw, 0).numpy(), expected, num_classes)


@settings(max_examples=30)
@given(
    num_keypoints=st.integers(1, 4),
    anchors=st.lists(st.integers(1, 500), min_size=2, max_size=8).filter(lambda a: len(a) % 2 == 0),
    sides=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.sampled_from([8, 16, 32, 64]),
    seed=st.integers(0, 99),
)
def test_pose_objects_are_decoded_by_the_equations(
    num_keypoints: int, anchors: list[int], sides: tuple[int, int], stride: int, seed: int
) -> None:
    module = PoseObject(1 + num_keypoints, [anchors], [1], 2 * num_keypoints)
    module.set_stride([stride])
    generator = torch.Generator().manual_seed(seed)
    raw = 4 * torch.randn(2, len(anchors) // 2 * module.columns, *sides, generator=generator)
    expected = decode_pose_objects(raw.double().numpy(), anchors, stride, 1 + num_keypoints)
    found = module.decode(raw, 0).numpy()
    assert found.shape == expected.shape
    limit = np.full(found.shape[-1], PIXELS)
    limit[4 : 6 + num_keypoints] = PROBABILITY
    assert (np.abs(found - expected) <= limit + 1e-5 * np.abs(expected) * (limit == PIXELS)).all()


def test_the_split_into_anchors_cuts_across_boxes_and_keypoints() -> None:
    """One class and 17 keypoints: 18 detection and 153 keypoint channels make 3 anchors of 57 values.

    The first anchor has all detection channels (its box, objectness, class and four keypoints) and 39 of the keypoint
    branch; the other two lie in the keypoint branch entirely, boxes included.
    """
    module = prepared(IKeypoint(1, ANCHORS[:1], CHANNELS[:1], 17, depthwise=True))
    (feature,) = features_of(*CHANNELS[:1])
    cells = feature.shape[2] * feature.shape[3]

    def changed_by(bias: Tensor, channels: slice) -> np.ndarray:
        """For each anchor and column whether it depends on these channels."""
        with torch.no_grad():
            before = module(feature)
            bias[channels] += 0.5
            after = module(feature)
            bias[channels] -= 0.5
        return (before != after).reshape(2, 3, cells, 57).any(dim=2).all(dim=0).numpy()

    detection = changed_by(module.m[0].bias, slice(None))
    assert detection[0, :18].all()
    assert not detection[0, 18:].any()
    assert not detection[1:].any()
    first = changed_by(module.m_kpt[0][-1].bias, slice(0, 39))
    assert first[0, 18:].all()
    assert not first[0, :18].any()
    assert not first[1:].any()
    rest = changed_by(module.m_kpt[0][-1].bias, slice(39, 153))
    assert not rest[0].any()
    assert rest[1:].all()


def test_implicit_knowledge_reaches_the_detection_channels_only() -> None:
    module = prepared(IKeypoint(1, ANCHORS[:1], CHANNELS[:1], 17))
    (feature,) = features_of(*CHANNELS[:1])
    with torch.no_grad():
        before = module(feature)
        module.ia[0].implicit += 1
        module.im[0].implicit *= 2
        after = module(feature)
    anchors = (before != after).reshape(2, 3, -1, 57)
    assert anchors[:, 0, :, :18].any(dim=2).all()
    assert not anchors[:, 0, :, 18:].any()
    assert not anchors[:, 1:].any()


def test_rows_run_over_levels_then_anchors_then_grid_rows_then_grid_columns() -> None:
    """With all raw values zero a row is its cell's centre and its anchor: every one can be named."""
    module = Detect(1, ANCHORS, CHANNELS)
    module.set_stride(STRIDES)
    rows = torch.cat([module.decode(torch.zeros(1, 18, 4 // n, 6 // n), i) for i, n in enumerate((1, 2))], 1)[0]
    expected = [
        [(x + 0.5) * stride, (y + 0.5) * stride, *anchor, 0.5, 0.5]
        for (height, width), stride, level in zip(((4, 6), (2, 3)), STRIDES, ANCHORS, strict=True)
        for anchor in zip(level[::2], level[1::2], strict=True)
        for y in range(height)
        for x in range(width)
    ]
    np.testing.assert_allclose(rows, expected, rtol=1e-6)
