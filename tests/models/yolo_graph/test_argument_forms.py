"""The forms in which a row's arguments are written: what the projects evaluate, and what torch gets of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from deploykit.errors import CheckpointError
from deploykit.models.layers.anchor_head import IKeypoint
from deploykit.models.layers.conv import Conv
from deploykit.models.layers.pool import SPPCSPC, ZeroPad2d
from deploykit.models.yolo_graph.description import GraphConfig
from deploykit.models.yolo_graph.layer_graph import LayerGraph, build_graph

HEAD = [[-1], 1, "Detect", ["nc", "anchors"]]


def graph_of(*rows: Any, head: Any = HEAD, **facts: Any) -> LayerGraph:
    config = GraphConfig(rows=(*rows, head), num_classes=2, anchors=((10.0, 20.0),))
    return build_graph(replace(config, **facts))


def conv_of(*arguments: Any, kind: str = "Conv") -> Conv:
    layer = graph_of([-1, 1, kind, list(arguments)], [-1, 1, "Conv", [8, 3, 2]]).model[0]
    assert isinstance(layer, Conv)
    return layer


FORMS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "a kernel as a list": ([8, [1, 1]], {"kernel_size": (1, 1), "padding": (0, 0)}),
    "a kernel of two sizes": ([8, [3, 1], 1], {"kernel_size": (3, 1), "padding": (1, 0)}),
    "a kernel as a string": ([8, "[1, 3]"], {"kernel_size": (1, 3), "padding": (0, 1)}),
    "a number as a string": ([8, "5", "2"], {"kernel_size": (5, 5), "stride": (2, 2), "padding": (2, 2)}),
    "a stride as a list": ([8, 3, [2, 1]], {"stride": (2, 1), "padding": (1, 1)}),
    "a padding as a list": ([8, 6, 2, [2, 2]], {"padding": (2, 2)}),
    "a padding of none": ([8, 3, 2, None, 1], {"padding": (1, 1), "groups": 1}),
    "a padding of none, as a string": ([8, 3, 2, "None", 1], {"padding": (1, 1)}),
    "classes by name": (["nc", 3, 2], {"out_channels": 8}),
    "a dilation": ([8, 3, 1, "None", 1, 2], {"dilation": (2, 2), "padding": (2, 2)}),
}


@pytest.mark.parametrize(("arguments", "expected"), FORMS.values(), ids=FORMS)
def test_a_convolutions_arguments(arguments: list[Any], expected: dict[str, Any]) -> None:
    conv = conv_of(*arguments).conv
    assert {name: getattr(conv, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["nn.LeakyReLU(0.1)"], nn.LeakyReLU),
        (["nn.LeakyReLU(negative_slope=0.1, inplace=True)"], nn.LeakyReLU),
        (["nn.Mish()"], nn.Mish),
        ([True], nn.SiLU),
        (["True"], nn.SiLU),
        ([False], nn.Identity),
        ([1, False], nn.Identity),
        ([1, "nn.ReLU()"], nn.ReLU),
    ],
)
def test_a_convolutions_activation_is_its_last_argument(arguments: list[Any], kind: type[nn.Module]) -> None:
    conv = conv_of(8, 3, 2, "None", 1, *arguments)
    assert type(conv.act) is kind
    assert getattr(conv.act, "negative_slope", 0.1) == 0.1
    assert conv.conv.dilation == (1, 1)


def test_a_depthwise_convolution_has_its_dilation_after_the_stride() -> None:
    conv = conv_of(8, 3, 1, 2, "nn.ReLU()", kind="DWConv")
    assert (conv.conv.dilation, type(conv.act)) == ((2, 2), nn.ReLU)
    assert type(conv_of(8, 3, 1, "nn.ReLU()", kind="DWConv").act) is nn.ReLU


@pytest.mark.parametrize("kernel", [[1, 1, 1], [], ["x", 1]])
def test_a_kernel_that_is_no_size_is_refused(kernel: list[Any]) -> None:
    with pytest.raises(CheckpointError, match=r"layer 0 of the model's description, .* cannot be built"):
        conv_of(8, kernel)


def test_torchs_own_pools_and_paddings_are_rows_too() -> None:
    """As yolov3-tiny is described: a pool of stride 1 that keeps the size, because one row and column are added."""
    graph = graph_of(
        [-1, 1, "Conv", [8, 3, 1]],
        [-1, 1, "nn.MaxPool2d", [2, 2, 0]],
        [-1, 1, "nn.ZeroPad2d", [[0, 1, 0, 1]]],
        [-1, 2, "nn.MaxPool2d", [2, 1, 0]],
        [-1, 1, "nn.Identity", []],
    )
    assert graph.head.stride == (2,)
    assert isinstance(graph.model[3], nn.Sequential)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    padded = graph.model[2](x)
    assert padded.shape == (1, 1, 5, 5)
    assert padded[0, 0, -1].tolist() == padded[0, 0, :, -1].tolist() == [0.0] * 5


@pytest.mark.parametrize("sides", [(0, 1, 0, 1), (2, 0, 1, 3), (1, 1, 1, 1), (0, 0, 0, 0), (-1, 0, 2, -1)])
def test_a_padding_with_zeros_is_torchs(sides: tuple[int, int, int, int]) -> None:
    x = torch.rand(2, 3, 4, 5)
    assert torch.equal(ZeroPad2d(sides)(x), nn.ZeroPad2d(sides)(x))


def test_the_repeats_of_a_pyramid_are_its_own_argument() -> None:
    """The project hands them to SPPCSPC, which has no use for them, and makes one layer."""
    pyramid = graph_of([-1, 1, "Conv", [8, 3, 2]], [-1, 3, "SPPCSPC", [8, False, 1, 0.25]]).model[1]
    assert isinstance(pyramid, SPPCSPC)
    assert pyramid.cv1.conv.out_channels == 4


@pytest.mark.parametrize("kind", ["IKeypoint", "IDetect"])
def test_a_head_with_implicits_has_keypoints_where_its_row_says_so(kind: str) -> None:
    head = [[-1], 1, kind, ["nc", "anchors", "nkpt"]]
    graph = graph_of([-1, 1, "Conv", [8, 3, 2]], head=head, num_keypoints=5)
    assert type(graph.head) is IKeypoint
    assert graph.head.columns == 5 + 2 + 15
