"""Which folds are taken, from the errors that are measured with them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from deploykit.export.precision.folds import Candidate, Changes, Scaled
from deploykit.export.precision.folds.choose import choose_folds
from deploykit.runtime.arrays import Array

GRAPH = ir.from_proto(
    helper.make_model(
        helper.make_graph(
            [],
            "g",
            [helper.make_tensor_value_info("x", 1, (1,))],
            [helper.make_tensor_value_info("x", 1, (1,))],
        )
    )
)


class Offers:
    """A fold with candidates of given names, each of which changes a place of its own."""

    name = "fold"

    def __init__(self, **nodes: int) -> None:
        self.nodes = nodes

    def applies(self, graph: ir.Model) -> bool:
        return bool(self.nodes)

    def channels(self, graph: ir.Model) -> tuple[str, ...]:
        return ()

    def candidates(self, graph: ir.Model, images: Sequence[Array], peaks: Mapping[str, Array]) -> Iterable[Candidate]:
        for name, nodes in self.nodes.items():
            yield Candidate(name, 1, {(name, 0): (Scaled(0, np.ones(1, np.float32)),)}, nodes)


@pytest.mark.parametrize(
    ("nodes", "errors", "taken"),
    [
        ({"a": 0}, {"": 1.0, "a": 0.97}, ("fold a",)),
        ({"a": 0}, {"": 1.0, "a": 0.99}, ()),
        ({"a": 0}, {"": math.nan, "a": 0.5}, ("fold a",)),
        ({"a": 0}, {"": 1.0, "a": math.nan}, ()),
        ({"a": 0, "b": 0}, {"": 1.0, "a": 0.9, "b": 0.89}, ("fold b",)),
        ({"a": 0, "b": 0}, {"": 1.0, "a": 0.89, "b": 0.9}, ("fold a",)),
        ({"a": 3}, {"": 1.0, "a": 0.92}, ()),
        ({"a": 3}, {"": 1.0, "a": 0.89}, ("fold a",)),
        ({"a": 0, "b": 3}, {"": 1.0, "a": 0.93, "b": 0.87}, ("fold a",)),
        ({"a": 0, "b": 3}, {"": 1.0, "a": 0.93, "b": 0.83}, ("fold b",)),
    ],
)
def test_the_best_is_taken_if_it_is_worthwhile_and_more_so_if_it_adds_nodes(
    nodes: dict[str, int], errors: dict[str, float], taken: tuple[str, ...]
) -> None:
    def error_with(changes: Changes, scaled: object) -> float:
        return errors["".join(name for name, _ in changes)]

    changes, report = choose_folds(GRAPH, (), error_with, folds=[Offers(**nodes)])
    assert report is not None
    assert report.taken == taken
    assert tuple(f"fold {name}" for name, _ in changes) == taken


def test_without_places_nothing_is_measured() -> None:
    assert choose_folds(GRAPH, (), lambda changes, scaled: 1 / 0, folds=[Offers()]) == ({}, None)
