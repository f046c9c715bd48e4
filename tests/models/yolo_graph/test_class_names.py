"""Class names as YOLO files have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from deploykit.models.registry import load_model
from tests.narrow import few_layers, graph_of

NAMES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "a list": (["cat", "dog"], ("cat", "dog")),
    "numbers to names": ({0: "cat", 1: "dog"}, ("cat", "dog")),
    "numbers as strings": ({"0": "cat", "1": "dog"}, ("cat", "dog")),
    "numbers from 1": ({1: "cat", 2: "dog"}, ("cat", "dog")),
    "out of order": ({"1": "dog", "0": "cat"}, ("cat", "dog")),
    "a name too many": (["cat", "dog", "fox"], ("class 0", "class 1")),
    "a name too few": (["cat"], ("class 0", "class 1")),
}


@pytest.mark.parametrize(("names", "expected"), NAMES.values(), ids=NAMES)
def test_names_are_those_of_the_classes(tmp_path: Path, names: Any, expected: tuple[str, ...]) -> None:
    config = few_layers()
    model: Any = graph_of(config)
    model.names, model.yaml = (
        names,
        {
            "nc": config.num_classes,
            "anchors": [list(level) for level in config.anchors],
            "backbone": [list(row) for row in config.rows[:-1]],
            "head": [list(config.rows[-1])],
        },
    )
    torch.save({"model": model}, tmp_path / "best.pt")
    found = load_model(tmp_path / "best.pt")
    assert found.spec.classes == expected
    numbered = [note for note in found.notes if "are numbered instead" in note]
    assert bool(numbered) is (len(names) != 2)
