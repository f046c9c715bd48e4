"""A project that is not deploykit, which loads a created checkpoint as the original one would: by unpickling it.

Run as a script in a process of its own: ``original_project.py INPUT.npy CHECKPOINT...`` writes ``CHECKPOINT.npy``, what
each model computes. Its classes have the names of those of yolov7, yolov5, edgeai-yolov5 and KaPao, and rely on
just the attributes that those rely on (facts; the code is ours). It imports nothing of deploykit.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Model(nn.Module):
    def forward(self, x: Any) -> Any:
        kept: list[Any] = []
        for layer in self.model:
            if isinstance(layer.f, list):
                x = [x if f == -1 else kept[f] for f in layer.f]
            elif layer.f != -1:
                x = kept[layer.f]
            assert layer.type.rpartition(".")[2] == type(layer).__name__
            assert layer.np == sum(p.numel() for p in layer.parameters())
            x = layer(x)
            kept.append(x if layer.i in self.save else None)  # a layer that is asked for and not in save is None
        return x


class Conv(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class RepConv(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert not self.deploy
        assert self.rbr_dense[0].weight.shape[:2] == (self.out_channels, self.in_channels // self.groups)
        identity = 0 if self.rbr_identity is None else self.rbr_identity(x)
        return self.act(self.rbr_dense(x) + self.rbr_1x1(x) + identity)


class Pool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.m(x)


MP, SP = type("MP", (Pool,), {}), type("SP", (Pool,), {})


class Concat(nn.Module):
    def forward(self, x: list[Tensor]) -> Tensor:
        return torch.cat(x, self.d)


class Shortcut(nn.Module):
    def forward(self, x: list[Tensor]) -> Tensor:
        return x[0] + x[1]


class ReOrg(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., r::2, c::2] for c in (0, 1) for r in (0, 1)], 1)


class DownC(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.cv2(self.cv1(x)), self.cv3(self.mp(x))), 1)


class SPPCSPC(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = self.cv4(self.cv3(self.cv1(x)))
        y = self.cv6(self.cv5(torch.cat([y, *(pool(y) for pool in self.m)], 1)))
        return self.cv7(torch.cat((y, self.cv2(x)), 1))


class ImplicitA(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.implicit.expand(1, self.channel, 1, 1)


class ImplicitM(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.implicit.expand(1, self.channel, 1, 1)


class Head(nn.Module):
    def raw(self, x: Tensor, i: int) -> Tensor:
        return self.m[i](x)

    def forward(self, x: list[Tensor]) -> Tensor:
        assert len(self.grid) == self.nl
        rows = []
        for i in range(self.nl):
            y = self.raw(x[i], i)
            b, _, h, w = y.shape
            y = y.view(b, self.na, self.no, h, w).permute(0, 1, 3, 4, 2)
            grid = torch.stack(torch.meshgrid(torch.arange(w), torch.arange(h), indexing="xy"), 2)
            det = y[..., : 5 + self.nc].sigmoid()
            xy = (det[..., :2] * 2 - 0.5 + grid) * self.stride[i]
            pixels = self.anchors[i] * self.stride[i]
            if isinstance(self.anchor_grid, list):  # YOLOv5 6.0 and later: made when it runs
                assert "anchor_grid" not in self._buffers
                wh = (det[..., 2:4] * 2) ** 2 * pixels.view(1, self.na, 1, 1, 2)
            else:
                wh = (det[..., 2:4] * 2) ** 2 * self.anchor_grid[i]
                assert torch.allclose(pixels, self.anchor_grid[i].flatten(0, 3), rtol=1e-3)
            parts = [xy, wh, det[..., 4:]]
            if hasattr(self, "nkpt"):
                kpt = y[..., 5 + self.nc :].unflatten(-1, (self.nkpt, 3))
                place = (kpt[..., :2] * 2 - 0.5 + grid[:, :, None]) * self.stride[i]
                parts.append(torch.cat((place, kpt[..., 2:].sigmoid()), -1).flatten(-2))
            if hasattr(self, "num_coords"):
                assert self.no == 5 + self.nc + self.num_coords
                pairs = y[..., 5 + self.nc :].sigmoid().unflatten(-1, (self.num_coords // 2, 2)) * 4 - 2
                pairs = pairs * self.anchor_grid[i].unsqueeze(-2) + (grid * self.stride[i])[:, :, None]
                parts.append(pairs.flatten(-2))
            rows.append(torch.cat(parts, -1).flatten(1, 3))
        return torch.cat(rows, 1)


class Bottleneck(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C3(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class SPPF(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        pooled = [self.cv1(x)]
        for _ in range(3):
            pooled.append(self.m(pooled[-1]))
        return self.cv2(torch.cat(pooled, 1))


class Focus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "contract"):
            return self.conv(self.contract(x))
        return self.conv(torch.cat([x[..., r::2, c::2] for c in (0, 1) for r in (0, 1)], 1))


class Contract(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        g = self.gain
        return torch.cat([x[..., r::g, c::g] for r in range(g) for c in range(g)], 1)


class ConvFocus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv_slice(x))


class SPP(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        return self.cv2(torch.cat([x, *(pool(x) for pool in self.m)], 1))


class BottleneckCSP(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat((self.cv3(self.m(self.cv1(x))), self.cv2(x)), 1)
        return self.cv4(self.act(self.bn(both)))


class GhostConv(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = self.cv1(x)
        return torch.cat((y, self.cv2(y)), 1)


class GhostBottleneck(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.shortcut(x)


class C3Ghost(C3):
    pass


class Detect(Head):
    def raw(self, x: Tensor, i: int) -> Tensor:
        assert self.inplace
        if not hasattr(self, "nkpt"):
            return self.m[i](x)
        assert (self.no_det, self.no_kpt, self.no) == (5 + self.nc, 3 * self.nkpt, 5 + self.nc + 3 * self.nkpt)
        assert self.dw_conv_kpt == isinstance(self.m_kpt[i], nn.Sequential)
        return torch.cat((self.m[i](x), self.m_kpt[i](x)), 1)


class IDetect(Head):
    def raw(self, x: Tensor, i: int) -> Tensor:
        return self.im[i](self.m[i](self.ia[i](x)))


class IAuxDetect(IDetect):
    pass


class IKeypoint(IDetect):
    def raw(self, x: Tensor, i: int) -> Tensor:
        assert (self.no_det, self.no_kpt, self.no) == (5 + self.nc, 3 * self.nkpt, 5 + self.nc + 3 * self.nkpt)
        assert self.dw_conv_kpt
        return torch.cat((super().raw(x, i), self.m_kpt[i](x)), 1)


FIVE = (Bottleneck, C3, SPPF, Focus, SPP, BottleneckCSP, GhostConv, GhostBottleneck, C3Ghost)
POSE = (Contract, ConvFocus)


def main(given: str, *files: str) -> None:
    """Load and run each file."""
    package, common, yolo = (types.ModuleType(name) for name in ("models", "models.common", "models.yolo"))
    for kind in (Conv, RepConv, MP, SP, Concat, Shortcut, ReOrg, DownC, SPPCSPC, ImplicitA, ImplicitM, *FIVE, *POSE):
        setattr(common, kind.__name__, kind)
    for kind in (Model, Detect, IDetect, IAuxDetect, IKeypoint):
        setattr(yolo, kind.__name__, kind)
    sys.modules |= {"models": package, "models.common": common, "models.yolo": yolo}
    torch.set_num_threads(1)
    images = torch.from_numpy(np.load(given))
    for file in files:
        saved = torch.load(file, weights_only=False)
        model = saved["model"]
        assert {p.dtype for p in model.parameters()} == {torch.float16}
        assert all(p.requires_grad for p in model.parameters())
        assert model.training
        with torch.no_grad():
            np.save(f"{file}.npy", model.float().eval()(images).numpy())
    assert not [name for name in sys.modules if name.startswith("deploykit")]


if __name__ == "__main__":
    main(*sys.argv[1:])
