"""First layers of YOLOv5 before 6.0, which halve the image's size (upstream ``models/common.py``, AGPL-3.0, formerly
GPL-3.0, and TexasInstruments/edgeai-yolov5, branch ``yolo-pose``, GPL-3.0: facts only, the code is ours)."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from deploykit.models.fuse import check_fold, fold_into, probe_of, shared_copy
from deploykit.models.layers.conv import Conv, space_to_depth


class Focus(nn.Module):
    """Space to depth by 2, then a convolution; ``(B, c1, H, W)`` to ``(B, c2, H/2, W/2)``.

    ``rows_first`` is the order of the four blocks, see :func:`~deploykit.models.layers.conv.space_to_depth`: False in
    the pose branch of edgeai-yolov5, where a ``Contract`` without weights does it. No state dict says which it is.
    """

    def __init__(
        self, c1: int, c2: int, k: int = 1, s: int = 1, p: int | None = None, g: int = 1, act: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv = Conv(c1 * 4, c2, k, s, p, g, act)
        self.rows_first = True

    @staticmethod
    def of(conv: Conv) -> Focus:
        """The same two steps of a network that has them as two layers, with the convolution itself."""
        new = Focus.__new__(Focus)
        nn.Module.__init__(new)
        new.conv, new.rows_first = conv, True
        return new

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(space_to_depth(x, rows_first=self.rows_first))
        return out

    def fuse(self, path: str) -> nn.Module:
        """One convolution of twice the kernel, stride and padding on the image itself, as YOLOv5 6.0 begins with."""
        conv = self.conv.fuse(f"{path}.conv")
        # In groups, one holds some pixels of every channel, and dilated, a kernel has pairs of pixels: neither is a
        # convolution of the image.
        if conv.conv.groups > 1 or conv.conv.dilation != (1, 1):
            new = shared_copy(self)
            new.conv = conv
            return new
        new_conv = shared_copy(conv)
        new_conv.conv = self._unfolded(conv.conv, path)
        return new_conv

    def _unfolded(self, conv: nn.Conv2d, path: str) -> nn.Conv2d:
        assert conv.bias is not None
        (kh, kw), (sh, sw) = conv.kernel_size, conv.stride
        ph, pw = (int(p) for p in conv.padding)
        out, c = conv.out_channels, conv.in_channels // 4
        wide = nn.Conv2d(
            c, out, (2 * kh, 2 * kw), (2 * sh, 2 * sw), (2 * ph, 2 * pw), dtype=conv.weight.dtype, device="meta"
        )
        blocks = conv.weight.detach().double().view(out, 2, 2, c, kh, kw)
        # Of the two parities the rows' goes beside the kernel's rows, the columns' beside its columns.
        parts = blocks.permute(0, 3, 4, 2, 5, 1) if self.rows_first else blocks.permute(0, 3, 4, 1, 5, 2)
        unfolded = fold_into(wide, parts.reshape(out, c, 2 * kh, 2 * kw), conv.bias.detach().double())
        before, after = (copy.deepcopy(m).double() for m in (conv, unfolded))
        check_fold(
            path,
            "space to depth",
            lambda x: before(space_to_depth(x, rows_first=self.rows_first)),
            after,
            probe_of(unfolded),
        )
        return unfolded


class ConvFocus(nn.Module):
    """A strided 3x3 convolution in the place of Focus' space to depth (the ``ti_lite`` models of edgeai-yolov5)."""

    def __init__(
        self, c1: int, c2: int, k: int = 1, s: int = 1, p: int | None = None, g: int = 1, act: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv_slice = Conv(c1, c1 * 4, 3, 2, p, g, act)
        self.conv = Conv(c1 * 4, c2, k, s, p, g, act)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(self.conv_slice(x))
        return out
