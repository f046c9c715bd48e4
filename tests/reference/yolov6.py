"""YOLOv6 once more, in numpy and by its definition: blocks, decode, and the whole network over a state dict.

It reads what a network is made of from the names in the state dict alone; it shares nothing with ``deploykit.models``.
Facts: meituan/YOLOv6 at 0.1.0, 0.2.1, 0.3.0 and 0.4.0 (GPL-3.0), papers arXiv 2209.02976, 2301.05586 and 2212.01593.
"""

from __future__ import annotations

import numpy as np

from tests.reference.layers import Activation, Array, Weights, batch_norm, conv2d, max_pool, relu, sigmoid, silu

CENTRE = 0.5


def conv(x: Array, w: Weights, at: str, k: int = 1, s: int = 1, act: Activation = relu) -> Array:
    """Convolution (with a bias in 0.2), batch norm, activation."""
    y = conv2d(x, w[f"{at}.conv.weight"], w.get(f"{at}.conv.bias"), s, k // 2)
    return act(batch_norm(y, w, f"{at}.bn"))


def linear(x: Array) -> Array:
    return x


def mean_3x3(x: Array) -> Array:
    """The mean of each place's nine neighbours, zeros beyond the edge counted."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    h, w = x.shape[2:]
    return np.asarray(sum(padded[:, :, i : i + h, j : j + w] for i in range(3) for j in range(3)) / 9)


def rep_vgg(x: Array, w: Weights, at: str, s: int = 1) -> Array:
    y = conv(x, w, f"{at}.rbr_dense", 3, s, linear) + conv(x, w, f"{at}.rbr_1x1", 1, s, linear)
    if f"{at}.rbr_identity.weight" in w:
        y = y + batch_norm(x, w, f"{at}.rbr_identity")
    return relu(y)


def qa_rep_vgg(x: Array, w: Weights, at: str, s: int = 1, *, mean: bool = True) -> Array:
    y = conv(x, w, f"{at}.rbr_dense", 3, s, linear) + conv2d(x, w[f"{at}.rbr_1x1.weight"], None, s)
    if s == 1 and x.shape[1] == y.shape[1]:
        y = y + x + (mean_3x3(x) if mean else 0)
    return relu(batch_norm(y, w, f"{at}.bn"))


def block(x: Array, w: Weights, at: str, s: int = 1, act: Activation = relu) -> Array:
    """Whichever 3x3 block there are weights for."""
    if f"{at}.rbr_1x1.weight" in w:
        return qa_rep_vgg(x, w, at, s)
    if f"{at}.rbr_1x1.conv.weight" in w:
        return rep_vgg(x, w, at, s)
    return conv(x, w, at, 3, s, act)


def bottle_rep(x: Array, w: Weights, at: str, act: Activation = relu) -> Array:
    y = block(block(x, w, f"{at}.conv1", act=act), w, f"{at}.conv2", act=act)
    return y + w[f"{at}.alpha"] * x if x.shape[1] == y.shape[1] else y


def chain(x: Array, w: Weights, at: str, act: Activation = relu) -> Array:
    """As many blocks or bottlenecks as there are weights for."""
    unit = bottle_rep if f"{at}.conv1.alpha" in w else lambda x, w, at, act: block(x, w, at, 1, act)
    x, i = unit(x, w, f"{at}.conv1", act), 0
    while any(key.startswith(f"{at}.block.{i}.") for key in w):
        x, i = unit(x, w, f"{at}.block.{i}", act), i + 1
    return x


def stage(x: Array, w: Weights, at: str, act: Activation = relu) -> Array:
    """A plain chain, or one in a cross-stage block."""
    if f"{at}.cv3.conv.weight" not in w:
        return chain(x, w, at, act)
    worked = chain(conv(x, w, f"{at}.cv1", act=act), w, f"{at}.m", act)
    return conv(np.concatenate([worked, conv(x, w, f"{at}.cv2", act=act)], 1), w, f"{at}.cv3", act=act)


def pooled(x: Array) -> Array:
    pyramid = [x]
    for _ in range(3):
        pyramid.append(max_pool(pyramid[-1], 5, 1, 2))
    return np.concatenate(pyramid, 1)


def sim_sppf(x: Array, w: Weights, at: str, act: Activation = relu) -> Array:
    return conv(pooled(conv(x, w, f"{at}.cv1", act=act)), w, f"{at}.cv2", act=act)


def csp_sppf(x: Array, w: Weights, at: str, act: Activation = relu) -> Array:
    main = conv(conv(conv(x, w, f"{at}.cv1", act=act), w, f"{at}.cv3", 3, act=act), w, f"{at}.cv4", act=act)
    main = conv(conv(pooled(main), w, f"{at}.cv5", act=act), w, f"{at}.cv6", 3, act=act)
    return conv(np.concatenate([conv(x, w, f"{at}.cv2", act=act), main], 1), w, f"{at}.cv7", act=act)


def transpose(x: Array, w: Weights, at: str) -> Array:
    """Each pixel becomes 2x2: ``out[2i + a, 2j + b] = sum over c of x[c, i, j] weight[c, :, a, b] + bias``."""
    weight, bias = w[f"{at}.upsample_transpose.weight"], w[f"{at}.upsample_transpose.bias"]
    b, _, h, width = x.shape
    out: Array = np.einsum("bchw,coij->bohiwj", x, weight).reshape(b, weight.shape[1], 2 * h, 2 * width)
    return np.asarray(out + bias[:, None, None])


def bifusion(small: Array, same: Array, large: Array, w: Weights, at: str) -> Array:
    halved = conv(conv(large, w, f"{at}.cv2"), w, f"{at}.downsample", 3, 2)
    parts = [transpose(small, w, f"{at}.upsample"), conv(same, w, f"{at}.cv1"), halved]
    return conv(np.concatenate(parts, 1), w, f"{at}.cv3")


def grid(h: int, w: int, offset: float) -> Array:
    """``(2, h, w)``: x and y of each cell."""
    return np.stack(np.meshgrid(np.arange(w), np.arange(h), indexing="xy")) + offset


def distances(raw: Array) -> Array:
    """``(B, 4 * bins, H, W)`` to ``(B, 4, H, W)``: of each side the mean of its distribution, if it is one."""
    if raw.shape[1] == 4:
        return raw
    b, channels, h, w = raw.shape
    bins = np.exp(raw.reshape(b, 4, channels // 4, h, w))
    values = np.arange(channels // 4)[:, None, None]
    return (bins / bins.sum(2, keepdims=True) * values).sum(2)  # type: ignore[no-any-return]


def decode(raw: Array, scores: Array, stride: int, objectness: Array | None = None) -> Array:
    """One level to rows ``(B, H * W, 5 + classes)``; with an objectness it is the head of 0.1."""
    h, w = raw.shape[2:]
    if objectness is not None:
        box = [(raw[:, :2] + grid(h, w, 0)) * stride, np.exp(raw[:, 2:]) * stride, sigmoid(objectness)]
    else:
        sides, place = distances(raw), grid(h, w, CENTRE)
        near, far = (place - sides[:, :2]) * stride, (place + sides[:, 2:]) * stride
        box = [(near + far) / 2, far - near, np.ones_like(scores[:, :1])]
    rows = np.concatenate([*box, sigmoid(scores)], 1)
    return rows.reshape(*rows.shape[:2], h * w).transpose(0, 2, 1)


def head(features: list[Array], w: Weights) -> Array:
    rows = []
    for i, feature in enumerate(features):
        x = conv(feature, w, f"detect.stems.{i}", act=silu)
        branch = conv(x, w, f"detect.reg_convs.{i}", 3, act=silu)
        classes = conv(x, w, f"detect.cls_convs.{i}", 3, act=silu)
        objectness = predicted(branch, w, f"detect.obj_preds.{i}") if f"detect.obj_preds.{i}.weight" in w else None
        box, scores = predicted(branch, w, f"detect.reg_preds.{i}"), predicted(classes, w, f"detect.cls_preds.{i}")
        rows.append(decode(box, scores, 8 * 2**i, objectness))
    return np.concatenate(rows, 1)


def predicted(x: Array, w: Weights, at: str) -> Array:
    return conv2d(x, w[f"{at}.weight"], w[f"{at}.bias"])


def backbone(x: Array, w: Weights, act: Activation = relu) -> list[Array]:
    """C2, C3, C4, C5 [, C6]."""
    x, features, i = block(x, w, "backbone.stem", 2, act), [], 2
    while any(key.startswith(f"backbone.ERBlock_{i}.") for key in w):
        at = f"backbone.ERBlock_{i}"
        x = stage(block(x, w, f"{at}.0", 2, act), w, f"{at}.1", act)
        if f"{at}.2.cv7.conv.weight" in w:
            x = csp_sppf(x, w, f"{at}.2", act)
        elif f"{at}.2.cv1.conv.weight" in w:
            x = sim_sppf(x, w, f"{at}.2", act)
        features.append(x)
        i += 1
    return features


THREE = (("Rep_p4", "Rep_p3"), (("downsample2", "Rep_n3"), ("downsample1", "Rep_n4")))
FOUR = (
    ("Rep_p5", "Rep_p4", "Rep_p3"),
    (("downsample2", "Rep_n4"), ("downsample1", "Rep_n5"), ("downsample0", "Rep_n6")),
)


def neck(features: list[Array], w: Weights, act: Activation = relu) -> list[Array]:
    down, up = FOUR if len(features) == 5 else THREE
    x, sides = features[-1], []
    for i, name in enumerate(down):
        x = conv(x, w, f"neck.reduce_layer{i}")
        sides.append(x)
        same, large = features[-2 - i], features[-3 - i]
        if f"neck.Bifusion{i}.cv1.conv.weight" in w:
            x = bifusion(x, same, large, w, f"neck.Bifusion{i}")
        else:
            x = np.concatenate([transpose(x, w, f"neck.upsample{i}"), same], 1)
        x = stage(x, w, f"neck.{name}", act)
    outputs = [x]
    for way, name in up:
        x = stage(np.concatenate([conv(x, w, f"neck.{way}", 3, 2), sides.pop()], 1), w, f"neck.{name}", act)
        outputs.append(x)
    return outputs


def run(images: Array, w: Weights, act: Activation = relu) -> Array:
    """Images ``(B, 3, H, W)`` to rows; ``act`` is that of blocks without branches."""
    return head(neck(backbone(images, w, act), w, act), w)
