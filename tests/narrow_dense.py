"""A narrow model with random weights of each registered one that has one dense output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import nn

from deploykit.models.create.random_weights import randomise
from deploykit.models.families import nafnet, resnet, vit, yolov5
from deploykit.models.families.cmt import flyegle as cmt_flyegle
from deploykit.models.families.cmt import model as cmt
from deploykit.models.families.crossformer import model as crossformer
from deploykit.models.families.dynopool import model as dynopool
from deploykit.models.families.fcn import model as fcn
from deploykit.models.families.unet import model as unet
from deploykit.models.families.unet.network import UNetConfig, build_unet
from deploykit.models.family import Family
from deploykit.models.registry import ReferenceModel
from deploykit.models.yolo_graph.classifier import build_classifier, classifier_of

SIDE = 64  # of their canvas


def _of(family: Family[Any], name: str, config: Any) -> Callable[[], ReferenceModel]:
    """A network of that configuration under the name of a registered one."""
    return lambda: replace(family.reference(config, family.network(config)), name=name.replace("_", "-"))


def _fcn(kind: str) -> Callable[[], ReferenceModel]:
    config = fcn.FcnConfig(kind, 3, ((4, 4), (6, 6), (8, 8, 8), (10, 10, 10), (12, 12, 12)), (24, 16))
    return lambda: fcn.FAMILY.reference(config, fcn.FAMILY.network(config))


def _nafnet(name: str) -> Callable[[], ReferenceModel]:
    """With two blocks where there are more: they are all alike."""
    full = nafnet.VARIANTS[name]
    blocks: dict[str, Any] = {
        "encoders": tuple(min(n, 2) for n in full.encoders[:3]), "decoders": tuple(min(n, 2) for n in full.decoders[:3])
    }  # fmt: skip
    config = replace(full, width=full.width // 4, middle=min(full.middle, 2), **blocks)
    return _of(nafnet.FAMILY, name, config)


def _unet(config: UNetConfig) -> Callable[[], ReferenceModel]:
    return lambda: unet.reference_of(config, build_unet(config))


STAGES = (dynopool.Stage(8, 1, 3, 1, False), dynopool.Stage(12, 2, 5, 3, True), dynopool.Stage(16, 1, 3, 2, True))


def _cmt(name: str) -> Callable[[], ReferenceModel]:
    """Of one or two blocks a stage, and an eighth of the width."""
    full = cmt.VARIANTS[name]
    sizes = {"dims": (8, 16, 16, 32), "hidden": (20, 24, 28, 32), "depths": tuple(min(n // 2, 2) for n in full.depths)}
    config = replace(full, **sizes, size=SIDE, stem=8, features=16, num_classes=5)
    return _of(cmt.FAMILY, name, config)


def _flyegle(name: str) -> Callable[[], ReferenceModel]:
    full = cmt_flyegle.VARIANTS[name]
    sizes: dict[str, Any] = {
        "dims": (8, 16, 16, 32),
        "hidden": (20, 24, 28, 32),
        "depths": tuple(min(n // 2, 2) for n in full.depths),
    }
    config = replace(full, **sizes, size=SIDE, stem=8, features=16, num_classes=5)
    return _of(cmt_flyegle.FAMILY, name, config)


def _crossformer(name: str) -> Callable[[], ReferenceModel]:
    """Of one or two blocks a stage; all of its maps are larger than a group, but for the last."""
    full = crossformer.VARIANTS[name]
    depths = tuple(min(n, 2) for n in full.depths)
    config = replace(full, dim=32, depths=depths, heads=(1, 2, 2, 4), num_classes=5, ratio=2)
    return _of(crossformer.FAMILY, name, config)


def _resnet(name: str) -> Callable[[], ReferenceModel]:
    """With one or two blocks where there are more; the widths are the layout's."""
    config = replace(resnet.VARIANTS[name], depths=tuple(min(n - 1, 2) for n in resnet.VARIANTS[name].depths))
    return _of(resnet.FAMILY, name, config)


def _yolov5(name: str) -> Callable[[], ReferenceModel]:
    """A classifier of an eighth of the width."""
    full = yolov5.CLASSIFIERS[name]
    backbone = replace(full, widths=tuple(max(width // 8, 8) for width in full.widths))
    return lambda: classifier_of(build_classifier(backbone, 5), name, yolov5.FAMILY)


DYNOPOOL = {
    "dynopool-vgg16": dynopool.VggConfig(5, ((6, 6), (8,), (8,), (12,), (12,))),
    "dynopool-efficientnet-b0": dynopool.EfficientNetConfig(5, STAGES, stem=8, last=20),
    "dynopool-hrnet-w48": dynopool.HrNetConfig(3, 4, (1, 1, 1), stem=8),
}
VIT = vit.VitConfig(32, 2, 2, 64, patch=16, grid=SIDE // 16, num_classes=5)

NARROW: dict[str, Callable[[], ReferenceModel]] = {
    **{name: _of(dynopool.FAMILY, name, config) for name, config in DYNOPOOL.items()},
    **{name.replace("_", "-"): _cmt(name) for name in cmt.VARIANTS},
    **{name.replace("_", "-"): _flyegle(name) for name in cmt_flyegle.VARIANTS},
    **{name.replace("_", "-"): _crossformer(name) for name in crossformer.VARIANTS},
    "mae-vit-b16": _of(vit.FAMILY, "mae-vit-b16", VIT),
    "mae-vit-l16": _of(vit.FAMILY, "mae-vit-l16", replace(VIT, depth=3)),
    "mae-vit-h14": _of(vit.FAMILY, "mae-vit-h14", replace(VIT, patch=8, grid=SIDE // 8)),
    "fcn32s": _fcn("32s"),
    "fcn16s": _fcn("16s"),
    "fcn8s": _fcn("8s"),
    "parsenet": _fcn("parsenet"),
    "parsenet-late": _fcn("parsenet-late"),
    **{name.replace("_", "-"): _nafnet(name) for name in nafnet.VARIANTS},
    **{name.replace("_", "-"): _resnet(name) for name in resnet.VARIANTS},
    **{name.replace("_", "-"): _yolov5(name) for name in yolov5.CLASSIFIERS},
    "unet": _unet(UNetConfig.published(width=4, depth=3)),
    "unet-bilinear": _unet(UNetConfig.published(width=4, depth=3, bilinear=True)),
    "unet-2015": _unet(replace(UNetConfig.published(width=4, depth=2, channels=1), kind="valid")),
}


@cache
def narrow_dense(name: str) -> ReferenceModel:
    """The narrow model, in eval mode; one object a name."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NARROW[name]()
        randomise(model.module)
    module: nn.Module = model.module.eval().requires_grad_(False)
    canvas = replace(model.spec.input, size=(SIDE, SIDE))
    return replace(model, module=module, spec=replace(model.spec, input=canvas))
