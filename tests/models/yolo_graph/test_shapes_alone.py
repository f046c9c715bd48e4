"""The rules for shapes agree with torch's own kernels for the meta device, errors included."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from deploykit.models.layers.conv import Conv
from deploykit.models.yolo_graph.description import REFUSALS
from deploykit.models.yolo_graph.shapes_alone import RULES, ShapesAlone, outline


def shape_or_error(run: Callable[[], Tensor]) -> str:
    try:
        return str(tuple(run().shape))
    except REFUSALS as e:
        return str(e).partition("\n")[0]


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


sides = st.integers(1, 12)
channels = st.integers(1, 4)
pairs = st.tuples(st.integers(0, 4), st.integers(0, 4))
images = st.builds(meta, st.integers(1, 2), channels, sides, sides)


@given(data=st.data())
@settings(max_examples=150)
def test_each_rule_gives_what_torch_gives(data: st.DataObject) -> None:
    x, y = data.draw(images), data.draw(images)
    kernel, stride, padding, dilation = (data.draw(pairs) for _ in range(4))
    weight, bias = meta(4, data.draw(channels), *kernel), data.draw(st.sampled_from([None, meta(4), meta(3)]))
    groups, size = data.draw(st.sampled_from([1, 2])), data.draw(st.sampled_from([1, 2, 3, kernel]))
    dim, scale = data.draw(st.integers(-1, 4)), data.draw(st.sampled_from([0.5, 1.0, 1.5, 2.0, 2, 3.0]))
    pool = nn.MaxPool2d(size, data.draw(st.sampled_from([None, 1, 2])), padding, dilation)
    calls: dict[str, Callable[[], Tensor]] = {
        "conv2d": lambda: functional.conv2d(x, weight, bias, stride, padding, dilation, groups),
        "max_pool2d": lambda: pool(x),
        "avg_pool2d": lambda: functional.avg_pool2d(x, size, stride, padding, False, True),
        "interpolate": lambda: nn.Upsample(scale_factor=scale)(x),
        "cat": lambda: torch.cat((x, y, x), dim),
        "matmul": lambda: x @ y,
        "add": lambda: x + y,
        "mul": lambda: 0.5 * x,
    }
    run = calls[data.draw(st.sampled_from(sorted(calls)))]
    expected = shape_or_error(run)
    with ShapesAlone():
        found = shape_or_error(run)
    assert found == expected


def test_what_fits_is_never_asked_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = []
    for function, rule in list(RULES.items()):

        def noted(*args: object, rule: Callable[..., object] = rule, **named: object) -> object:
            answers.append(rule(*args, **named))
            return answers[-1]

        monkeypatch.setitem(RULES, function, noted)
    x = meta(1, 4, 8, 8)
    layer = outline(nn.Sequential(Conv(4, 6, 3, 2), nn.MaxPool2d(2), nn.Upsample(scale_factor=2), nn.AvgPool2d(2)))
    with ShapesAlone():
        y = torch.cat((layer(x) + layer(x), layer(x)), 1) * 0.5
        assert (y @ y).shape == (1, 12, 2, 2)
    assert len(answers) == 3 * 4 + 4
    assert None not in answers


def test_an_outline_leaves_the_network_as_it_is() -> None:
    network = nn.Sequential(Conv(3, 4, 3), Conv(4, 4))
    before = {key: t.clone() for key, t in network.state_dict().items()}
    twin = outline(network)
    assert all(p.is_meta for p in twin.parameters())
    assert not [m for m in twin.modules() if isinstance(m, nn.BatchNorm2d)]
    assert before.keys() == network.state_dict().keys()
    assert all(torch.equal(t, before[key]) for key, t in network.state_dict().items())
    assert math.prod(network(torch.zeros(1, 3, 8, 8)).shape) == 4 * 64
