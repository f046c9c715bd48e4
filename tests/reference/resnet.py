"""ResNets by their definition, a second time: functions over the tensors of a state dict, in float64."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

State = dict[str, Tensor]


def conv_norm(x: Tensor, state: State, conv: str, norm: str, stride: int) -> Tensor:
    weight = state[f"{conv}.weight"]
    groups = x.shape[1] // weight.shape[1]
    y = functional.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2, groups=groups)
    scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + 1e-5).sqrt()
    shift = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    return y * scale[:, None, None] + shift[:, None, None]


def resnet(images: Tensor, state: State) -> Tensor:
    """Logits; what kind it is of is seen from the keys."""
    state = {key: value.double() for key, value in state.items()}
    small = "linear.weight" in state
    x = conv_norm(images.double(), state, "conv1", "bn1", 1 if small else 2).clamp(min=0)
    if not small:
        x = functional.max_pool2d(functional.pad(x, (1, 1, 1, 1), value=-1.0), 3, 2)
    stage = 1
    while f"layer{stage}.0.conv1.weight" in state:
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in state:
            path = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            convs = [i for i in (1, 2, 3) if f"{path}.conv{i}.weight" in state]
            strided = 2 if len(convs) == 3 else 1  # torchvision's: the 3 x 3 convolution of a bottleneck
            y = x
            for i in convs:
                y = conv_norm(y, state, f"{path}.conv{i}", f"{path}.bn{i}", stride if i == strided else 1)
                y = y.clamp(min=0) if i < len(convs) else y
            if f"{path}.downsample.0.weight" in state:
                x = conv_norm(x, state, f"{path}.downsample.0", f"{path}.downsample.1", stride)
            elif y.shape[1] != x.shape[1]:
                x, before = torch.zeros_like(y), x[:, :, ::stride, ::stride]
                first = (x.shape[1] - before.shape[1]) // 2
                x[:, first : first + before.shape[1]] = before
            x = (y + x).clamp(min=0)
            block += 1
        stage += 1
    last = "linear" if small else "fc"
    return x.mean((2, 3)) @ state[f"{last}.weight"].T + state[f"{last}.bias"]
