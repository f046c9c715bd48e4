"""Anchor-based heads of YOLOv5 and YOLOv7: decode is a pure function of the features (no grid cache, no export mode).

Source of the facts: WongKinYiu/yolov7 ``models/yolo.py``, main and branch ``pose`` (GPL-3.0); the code is ours.
Paper: arXiv 2207.02696.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from deploykit.models.fuse import fuse_model
from deploykit.models.layers.conv import Conv
from deploykit.models.layers.rep import ImplicitA, ImplicitM, fold_implicit

Anchors = Sequence[Sequence[float]]
"""One flat list ``w, h, w, h, ...`` in network pixels per level."""

H = TypeVar("H", bound="Detect")


class Detect(nn.Module):
    """Feature maps of L levels, each ``(B, C_i, H_i, W_i)``, to rows ``(B, N, 5 + classes)`` in network pixels.

    Row: ``cx, cy, w, h, obj, cls...``; N runs over levels, then anchors, then grid rows, then grid columns.
    ``cxcy = (2 sigmoid - 0.5 + grid) stride``, ``wh = (2 sigmoid)^2 anchor``.
    """

    anchors: Tensor
    anchor_grid: Tensor

    def __init__(self, num_classes: int, anchors: Anchors, channels: Sequence[int]) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_levels = len(anchors)
        self.num_anchors = len(anchors[0]) // 2
        self.stride: tuple[int, ...] = ()  # set by the graph, which knows how far each level is scaled down
        grid = torch.tensor(anchors, dtype=torch.float32).view(self.num_levels, 1, -1, 1, 1, 2)
        self.register_buffer("anchors", grid.view(self.num_levels, -1, 2).clone())
        self.register_buffer("anchor_grid", grid)
        outputs = self.num_anchors * (5 + num_classes)
        self.m = nn.ModuleList(nn.Conv2d(c, outputs, 1) for c in channels[: self.num_levels])

    @property
    def columns(self) -> int:
        """Values per row."""
        return 5 + self.num_classes

    def set_stride(self, stride: Sequence[int]) -> None:
        """Tell the head the width of a cell of each level in network pixels."""
        self.stride = tuple(stride)
        # Upstream keeps a second copy of the anchors in cells; it is only there so that state dicts agree.
        if not self.anchors.is_meta:  # there is nothing to compute with, and trying loads torch's whole compiler
            self.anchors.copy_(self.anchor_grid.view_as(self.anchors) / torch.tensor(self.stride)[:, None, None])

    def forward(self, *features: Tensor) -> Tensor:
        rows = [self.decode(self.raw(x, level), level) for level, x in enumerate(features[: self.num_levels])]
        return torch.cat(rows, 1)

    def raw(self, x: Tensor, level: int) -> Tensor:
        """``(B, C, H, W)`` to ``(B, anchors * columns, H, W)``."""
        return cast(Tensor, self.m[level](x))

    def decode(self, raw: Tensor, level: int) -> Tensor:
        """``(B, anchors * columns, H, W)`` to ``(B, anchors * H * W, columns)``."""
        cells = self._cells(raw)
        return torch.cat(self._decode_box(cells, level), -1).flatten(1, 3)

    def rows_of(self, values: Tensor, stride: Tensor, offset: Tensor, anchor: Tensor) -> Tensor:
        """Decode single cells, wherever they are from: raw values ``(..., columns)`` to rows ``(..., columns)``.

        ``stride`` (..., 1), ``offset`` (..., 2) is (grid - 0.5) * stride in (x, y), ``anchor`` (..., 2) in pixels.
        """
        xy, wh, probabilities = torch.split(values.sigmoid(), [2, 2, 1 + self.num_classes], -1)
        return torch.cat((xy * (2 * stride) + offset, wh * wh * (4 * anchor), probabilities), -1)

    def random_weights(self, gain: float) -> None:
        """Rare detections: an improbable object at every anchor, of any class."""
        for level in range(self.num_levels):
            biases = [conv.bias for conv in self._last_convs(level) if conv.bias is not None]
            # One anchor's values may lie in both convolutions, so they are laid side by side first.
            cells = torch.cat([b.detach() for b in biases]).view(self.num_anchors, -1)
            cells[:, 4] = -4.0
            cells[:, 5 : 5 + self.num_classes] = 2.0
            for bias, part in zip(biases, torch.split(cells.flatten(), [len(b) for b in biases]), strict=True):
                bias.data.copy_(part)

    def _last_convs(self, level: int) -> tuple[nn.Conv2d, ...]:
        """The convolutions whose outputs, one after the other, are :meth:`raw`."""
        return (cast(nn.Conv2d, self.m[level]),)

    def _cells(self, raw: Tensor) -> Tensor:
        """``(B, A * columns, H, W)`` to ``(B, A, H, W, columns)``."""
        b, _, h, w = raw.shape
        return raw.view(b, self.num_anchors, -1, h, w).permute(0, 1, 3, 4, 2)

    def _offset(self, like: Tensor, level: int) -> Tensor:
        """``(grid - 0.5) * stride`` in (x, y) for cells ``(B, A, H, W, ...)``: ``(H, W, 2)``."""
        h, w = like.shape[2:4]
        stride = self.stride[level]
        y = torch.arange(h, dtype=like.dtype, device=like.device) * stride - 0.5 * stride
        x = torch.arange(w, dtype=like.dtype, device=like.device) * stride - 0.5 * stride
        return torch.stack((x.expand(h, w), y[:, None].expand(h, w)), -1)

    def _decode_box(self, raw: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """Raw detection cells ``(B, A, H, W, 5 + classes)`` to centre, size and probabilities: parts of a row."""
        xy, wh, probabilities = torch.split(raw.sigmoid(), [2, 2, 1 + self.num_classes], -1)
        # 2 * stride * sigmoid + (grid - 0.5) * stride: strides are powers of two, so nothing is rounded differently.
        xy = xy * (2 * self.stride[level]) + self._offset(raw, level)
        return xy, wh * wh * (4 * self.anchor_grid[level]), probabilities


class IDetect(Detect):
    """Detect with implicit knowledge, the training form: m * conv(x + a)."""

    def __init__(self, num_classes: int, anchors: Anchors, channels: Sequence[int]) -> None:
        super().__init__(num_classes, anchors, channels)
        self.ia = nn.ModuleList(ImplicitA(c) for c in channels[: self.num_levels])
        self.im = nn.ModuleList(ImplicitM(conv.out_channels) for conv in cast("list[nn.Conv2d]", self.m))

    def raw(self, x: Tensor, level: int) -> Tensor:
        return cast(Tensor, self.im[level](super().raw(self.ia[level](x), level)))

    def without_implicits(self) -> Detect:
        """The head whose convolutions have the implicits in them already."""
        return _rebuilt(self, Detect, m=self.m)

    def fuse(self, path: str) -> Detect:
        """Fold the implicits into the convolutions; the result is a plain :class:`Detect`."""
        return _rebuilt(self, Detect, m=_folded_implicits(self, path))


class IAuxDetect(IDetect):
    """IDetect with an auxiliary head per level, which only training uses; ``fuse`` drops it."""

    def __init__(self, num_classes: int, anchors: Anchors, channels: Sequence[int]) -> None:
        super().__init__(num_classes, anchors, channels)
        self.m2 = nn.ModuleList(nn.Conv2d(c, self.num_anchors * self.columns, 1) for c in channels[self.num_levels :])


class Keypoint(Detect):
    """Boxes and K keypoints: rows ``(B, N, 5 + classes + 3 K)``, each keypoint ``x, y, v``.

    ``xy = (2 raw - 0.5 + grid) stride`` without a sigmoid, ``v = sigmoid(raw)``. The detection and the keypoint
    channels of a level are concatenated before they are split into anchors, so the split cuts across both: that is
    how the original models were trained, and any tidier order gives garbage with their weights.
    """

    def __init__(
        self,
        num_classes: int,
        anchors: Anchors,
        channels: Sequence[int],
        num_keypoints: int = 17,
        depthwise: bool = False,
    ) -> None:
        super().__init__(num_classes, anchors, channels)
        self.num_keypoints = num_keypoints
        outputs = self.num_anchors * 3 * num_keypoints
        self.m_kpt = nn.ModuleList(
            _depthwise_branch(c, outputs) if depthwise else nn.Conv2d(c, outputs, 1) for c in channels
        )

    @property
    def columns(self) -> int:
        return 5 + self.num_classes + 3 * self.num_keypoints

    def raw(self, x: Tensor, level: int) -> Tensor:
        return torch.cat((super().raw(x, level), self.m_kpt[level](x)), 1)

    def decode(self, raw: Tensor, level: int) -> Tensor:
        cells = self._cells(raw)
        det, kpt = torch.split(cells, [5 + self.num_classes, 3 * self.num_keypoints], -1)
        xy, v = torch.split(
            kpt.reshape(*kpt.shape[:4], self.num_keypoints, 3), [2, 1], -1
        )  # (B, A, H, W, K, 2), (..., 1)
        xy = xy * (2 * self.stride[level]) + self._offset(cells, level)[:, :, None]
        keypoints = torch.cat((xy, v.sigmoid()), -1).flatten(-2)
        return torch.cat((*self._decode_box(det, level), keypoints), -1).flatten(1, 3)

    def rows_of(self, values: Tensor, stride: Tensor, offset: Tensor, anchor: Tensor) -> Tensor:
        det, kpt = torch.split(values, [5 + self.num_classes, 3 * self.num_keypoints], -1)
        xy, v = torch.split(kpt.reshape(*kpt.shape[:-1], self.num_keypoints, 3), [2, 1], -1)
        xy = xy * (2 * stride[..., None]) + offset[..., None, :]
        points = torch.cat((xy, v.sigmoid()), -1).flatten(-2)
        return torch.cat((super().rows_of(det, stride, offset, anchor), points), -1)

    def _last_convs(self, level: int) -> tuple[nn.Conv2d, ...]:
        branch = self.m_kpt[level]
        return *super()._last_convs(level), cast(nn.Conv2d, branch[-1] if isinstance(branch, nn.Sequential) else branch)

    def fuse(self, path: str) -> Keypoint:
        """Fold the keypoint branch's batch norms."""
        return _rebuilt(
            self, Keypoint, m=fuse_model(self.m, f"{path}.m"), m_kpt=fuse_model(self.m_kpt, f"{path}.m_kpt")
        )


class IKeypoint(Keypoint):
    """Keypoint with implicit knowledge on the detection channels; the keypoint branch sees the plain features."""

    def __init__(
        self,
        num_classes: int,
        anchors: Anchors,
        channels: Sequence[int],
        num_keypoints: int = 17,
        depthwise: bool = False,
    ) -> None:
        super().__init__(num_classes, anchors, channels, num_keypoints, depthwise)
        self.ia = nn.ModuleList(ImplicitA(c) for c in channels)
        self.im = nn.ModuleList(ImplicitM(conv.out_channels) for conv in cast("list[nn.Conv2d]", self.m))

    def raw(self, x: Tensor, level: int) -> Tensor:
        det = self.im[level](self.m[level](self.ia[level](x)))
        return torch.cat((det, self.m_kpt[level](x)), 1)

    def without_implicits(self) -> Keypoint:
        """The head whose convolutions have the implicits in them already."""
        return _rebuilt(self, Keypoint, m=self.m, m_kpt=self.m_kpt)

    def fuse(self, path: str) -> Keypoint:
        """Fold the implicits and the keypoint branch; the result is a plain :class:`Keypoint`."""
        return _rebuilt(self, Keypoint, m=_folded_implicits(self, path), m_kpt=fuse_model(self.m_kpt, f"{path}.m_kpt"))


class Proto(nn.Module):
    """The finest feature map ``(B, C, H, W)`` to prototypes of masks ``(B, masks, 2 H, 2 W)``, in ``width`` channels.

    ``upsample``: what doubles the size; None: every cell becomes four.
    """

    def __init__(self, channels: int, width: int, masks: int, upsample: nn.Module | None = None) -> None:
        super().__init__()
        self.cv1 = Conv(channels, width, 3)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest") if upsample is None else upsample
        self.cv2 = Conv(width, width, 3)
        self.cv3 = Conv(width, masks)

    def forward(self, *features: Tensor) -> Tensor:
        return cast(Tensor, self.cv3(self.cv2(self.upsample(self.cv1(features[0])))))


class Segment(Detect):
    """Boxes and masks: rows ``(B, N, 5 + classes + masks)``, prototypes ``(B, masks, 2 H, 2 W)`` of the finest level.

    The last columns are the coefficients of an object's mask, as the convolution gives them.
    """

    def __init__(
        self, num_classes: int, anchors: Anchors, channels: Sequence[int], num_masks: int = 32, proto_width: int = 256
    ) -> None:
        super().__init__(num_classes, anchors, channels)
        self.num_masks, self.proto_width = num_masks, proto_width
        self.m = nn.ModuleList(nn.Conv2d(c, self.num_anchors * self.columns, 1) for c in channels[: self.num_levels])
        self.proto = Proto(channels[0], proto_width, num_masks)

    @property
    def columns(self) -> int:
        return 5 + self.num_classes + self.num_masks

    def forward(self, *features: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # and the prototypes
        return super().forward(*features), self.proto(*features)

    def decode(self, raw: Tensor, level: int) -> Tensor:
        found, masks = torch.split(self._cells(raw), [5 + self.num_classes, self.num_masks], -1)
        return torch.cat((*self._decode_box(found, level), masks), -1).flatten(1, 3)

    def rows_of(self, values: Tensor, stride: Tensor, offset: Tensor, anchor: Tensor) -> Tensor:
        found, masks = torch.split(values, [5 + self.num_classes, self.num_masks], -1)
        return torch.cat((super().rows_of(found, stride, offset, anchor), masks), -1)


def _folded_implicits(head: IDetect | IKeypoint, path: str) -> nn.ModuleList:
    levels = zip(head.m, head.ia, head.im, strict=True)
    return nn.ModuleList(
        fold_implicit(cast(nn.Conv2d, m), cast(ImplicitA, a), cast(ImplicitM, im), f"{path}.m.{i}")
        for i, (m, a, im) in enumerate(levels)
    )


def _rebuilt(head: Detect, kind: type[H], **modules: nn.Module) -> H:
    """A head of ``kind`` with the buffers and numbers of ``head`` and just these modules."""
    new = kind.__new__(kind)
    new.__dict__ = {**head.__dict__, "_modules": modules, "_buffers": dict(head._buffers)}
    return new


def _depthwise_branch(channels: int, outputs: int) -> nn.Sequential:
    """Five times 3x3 depthwise and 1x1, one more depthwise, and the 1x1 that gives the keypoints."""
    layers: list[nn.Module] = []
    for _ in range(5):
        layers += [Conv(channels, channels, 3, g=channels), Conv(channels, channels, 1)]
    return nn.Sequential(*layers, Conv(channels, channels, 3, g=channels), nn.Conv2d(channels, outputs, 1))
