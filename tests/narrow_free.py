"""Narrow networks of the ultralytics package with seeded weights, one for each kind of its published networks.

There are 156 published ones, most of them the same layers in other numbers. :func:`groups` puts those together whose
rows name the same layers: what a test says of one size it says of the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import nn

from deploykit.models.create.random_weights import randomise
from deploykit.models.families.ultralytics.build import build_graph
from deploykit.models.families.ultralytics.description import Description
from deploykit.models.families.ultralytics.spec import reference_of
from deploykit.models.families.ultralytics.variants import variants
from deploykit.models.registry import ReferenceModel
from deploykit.models.yolo_graph.description import Row
from deploykit.models.yolo_graph.layer_graph import LayerGraph

__all__ = ["CLASSES", "group_of", "groups", "narrow_description", "narrow_free", "narrow_graph"]

CLASSES = ("cat", "dog", "fox")
SEED = 0
UNSCALED = {"RepNCSPELAN4": slice(1, 3), "ELAN1": slice(1, 3), "SPPELAN": slice(1, 2)}
"""Widths within a layer that a description's multiple leaves as they are."""


@cache
def groups() -> Mapping[str, tuple[str, ...]]:
    """The first published network of each list of layers -> all that have it, as they are typed."""
    alike: dict[str, list[str]] = {}
    for name, variant in variants().items():
        layers = [(row[0], row[2]) for row in variant.description.rows]
        alike.setdefault(repr((variant.family, layers)), []).append(name.replace("_", "-"))
    return {names[0]: tuple(names) for names in alike.values()}


@cache
def group_of() -> Mapping[str, str]:
    """Every published network -> the first one of its layers."""
    return {name: first for first, names in groups().items() for name in names}


def narrow_description(
    name: str,
    num_classes: int = 3,
    *,
    width: float = 0.125,
    depth: float = 0.2,
    kpt_shape: tuple[int, int] = (4, 3),
) -> Description:
    """A published network's layers with fewer channels and repeats."""
    full = variants()[name.replace("-", "_")].description
    rows = tuple(_thin(row, width) for row in full.rows)
    return replace(full, rows=rows, num_classes=num_classes, width=width, depth=depth, kpt_shape=kpt_shape)


def _thin(row: Row, width: float) -> Row:
    """The row with narrower widths where the description's multiple does not reach."""
    source, repeats, kind, arguments = row
    thinner = list(arguments)
    inner = UNSCALED.get(kind, slice(0))
    thinner[inner] = [_scaled(c, width) for c in thinner[inner]]
    if kind == "CBLinear":
        thinner[0] = [_scaled(c, width) for c in thinner[0]]
    return [source, repeats, kind, thinner]


def _scaled(channels: int, width: float) -> int:
    return math.ceil(channels * width / 8) * 8


def narrow_graph(description: Description, *, seed: int = SEED, score: float | None = None) -> LayerGraph:
    """The network with seeded weights; ``score`` is the bias of every class, to make it detect a lot (0)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        graph = build_graph(description)
        randomise(graph)
    if score is not None:
        branches = [m for name, m in graph.model[-1].named_children() if name.endswith("cv3")]
        for level in (level for branch in branches for level in branch.children()):
            nn.init.constant_(level[-1].bias, score)  # type: ignore[index]
    return graph.requires_grad_(False)


@cache
def narrow_free(
    name: str, /, *, side: int = 64, seed: int = SEED, score: float | None = None, branch: str = "", **options: Any
) -> ReferenceModel:
    """A narrow model of a published one's layers, one object a combination; ``name`` with either kind of hyphen.

    ``branch`` chooses one of a dual head; ``options``: see :func:`narrow_description`.
    """
    typed = name.replace("-", "_")
    description = narrow_description(typed, **options)
    graph = narrow_graph(description, seed=seed, score=score)
    if branch:
        graph.model[-1] = graph.model[-1].with_branch(branch)  # type: ignore[operator]
    model = reference_of(graph, description, typed, variants()[typed].family, side)
    classes = CLASSES[: description.num_classes] if description.num_classes <= len(CLASSES) else model.spec.classes
    return replace(model, spec=replace(model.spec, classes=classes))
