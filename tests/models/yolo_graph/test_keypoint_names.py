"""Keypoints as the entry ``keypoints`` of a checkpoint describes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploykit.models.create.original_format import original_checkpoint
from deploykit.models.registry import load_model
from deploykit.spec import KeypointSpec
from tests.narrow import few_layers, graph_of

CORNERS = ["top left", "top right", "bottom right", "bottom left"]
NUMBERED = KeypointSpec.unnamed(4)
ENTRIES: dict[str, tuple[Any, KeypointSpec, str]] = {
    "names and sigmas": (
        {"names": CORNERS, "skeleton": [[0, 1]], "sigmas": [0.05] * 4},
        KeypointSpec(tuple(CORNERS), skeleton=((0, 1),), sigmas=(0.05,) * 4),
        "",
    ),
    "names alone": ({"names": tuple(CORNERS)}, KeypointSpec(tuple(CORNERS)), ""),
    "a name too few": ({"names": CORNERS[:3]}, NUMBERED, "it names 3 keypoints and has 4: they are numbered instead"),
    "a limb to nowhere": (
        {"names": CORNERS, "skeleton": [[0, 4]]},
        NUMBERED,
        "its entry 'keypoints' cannot be used, and they are numbered instead: skeleton names keypoint 4",
    ),
    "a sigma of another type": (
        {"names": CORNERS, "sigmas": ["small"] * 4},
        NUMBERED,
        "its entry 'keypoints' cannot be used, and they are numbered instead: keypoints.sigmas[0] must be",
    ),
    "another project's entry": (17, NUMBERED, ""),
}


@pytest.mark.parametrize(("entry", "expected", "note"), ENTRIES.values(), ids=ENTRIES)
def test_keypoints_are_those_of_the_entry_if_they_fit(
    tmp_path: Path, entry: Any, expected: KeypointSpec, note: str
) -> None:
    graph = graph_of(few_layers(num_keypoints=4))
    (tmp_path / "best.pt").write_bytes(original_checkpoint(graph, ["cat", "dog"], keypoints=entry))
    found = load_model(tmp_path / "best.pt")
    assert found.spec.keypoints == expected
    said = [each for each in found.notes if "keypoints" in each]
    assert len(said) == bool(note)
    assert not note or said[0].startswith(note)


def test_a_detector_has_no_keypoints_whatever_its_file_says(tmp_path: Path) -> None:
    graph = graph_of(few_layers())
    (tmp_path / "best.pt").write_bytes(original_checkpoint(graph, ["cat", "dog"], keypoints={"names": CORNERS}))
    assert load_model(tmp_path / "best.pt").spec.keypoints is None
