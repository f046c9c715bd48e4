"""How the comparison with the ultralytics package pairs rows and objects, and what it does without that package."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from ultralytics_peer_numbers import object_differences, output_differences, pairs
from ultralytics_peer_page import numbers_page, time_tables

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "ultralytics_peer.py"


def some_objects(count: int, seed: int, *, oriented: bool = False) -> dict[str, Any]:
    """Objects at places at least 10 px apart, in three classes."""
    rng = np.random.default_rng(seed)
    centres = np.stack((np.arange(count) * 10.0, rng.uniform(0, 300, count)), 1)
    sides = rng.uniform(2, 80, (count, 2))
    corners = np.concatenate((centres - sides / 2, centres + sides / 2), 1)
    turned = np.concatenate((centres, sides, rng.uniform(0, np.pi, (count, 1))), 1)
    return {
        "boxes": turned if oriented else corners,
        "scores": rng.uniform(0.3, 1, count),
        "classes": rng.integers(0, 3, count),
    }


@given(st.integers(1, 30), st.integers(0, 1000), st.booleans())
def test_objects_in_another_order_are_the_same_objects(count: int, seed: int, oriented: bool) -> None:
    theirs = some_objects(count, seed, oriented=oriented)
    order = np.random.default_rng(seed).permutation(count)
    left, right = pairs(theirs, {key: value[order] for key, value in theirs.items()})
    assert sorted(left) == list(range(count))
    assert np.array_equal(order[right], left)


def test_an_oriented_box_described_by_its_other_side_is_the_same() -> None:
    theirs = some_objects(20, 3, oriented=True)
    swapped = theirs["boxes"][:, [0, 1, 3, 2, 4]] + np.array([0, 0, 0, 0, np.pi / 2])
    found = object_differences(theirs, theirs | {"boxes": swapped})
    assert found["both"] == 20
    assert found["box"] < 1e-9


def test_differences_are_those_that_were_made() -> None:
    theirs = some_objects(12, 1)
    points = np.random.default_rng(0).uniform(0, 300, (12, 5, 3))
    masks = np.zeros((12, 40, 40), bool)
    masks[:, :10, :10] = True
    theirs |= {"keypoints": points, "masks": masks}
    ours = {key: value.copy() for key, value in theirs.items()}
    ours["boxes"][4, 2] += 0.5
    ours["scores"][5] += 0.01
    ours["keypoints"][6, 2, :2] += (3, 4)
    ours["masks"][7, :, :5] &= False  # half of it
    ours["classes"][8] += 1
    found = object_differences(theirs, ours)
    wanted = {"theirs": 12, "ours": 12, "both": 11, "box": 0.5, "score": 0.01, "keypoints": 5, "overlap": 0.5}
    assert found == pytest.approx(wanted)


def test_an_object_further_away_than_two_pixels_is_another_one() -> None:
    theirs = some_objects(5, 2)
    moved = theirs["boxes"].copy()
    moved[3] += 2.5
    assert object_differences(theirs, theirs | {"boxes": moved})["both"] == 4


def test_rows_are_compared_by_column_and_the_layouts_are_told_apart() -> None:
    rows = np.random.default_rng(0).random((1, 50, 4 + 3 + 2))
    other = rows.copy()
    other[0, 7, 2] += 0.25
    other[0, 8, 5] += 0.125
    other[0, 9, 8] += 0.5
    found = output_differences([rows.transpose(0, 2, 1)], [other], extra=2, one_to_one=False)
    assert found == pytest.approx({"box": 0.25, "score": 0.125, "extra": 0.5})
    with pytest.raises(ValueError, match=r"rows of shape \(50, 9\) and \(9, 50\)"):
        output_differences([rows.transpose(0, 2, 1)], [other.transpose(0, 2, 1)], extra=2, one_to_one=False)


def test_rows_of_a_one_to_one_branch_are_paired_and_missing_ones_counted() -> None:
    objects = some_objects(30, 4)
    rows = np.concatenate((objects["boxes"], objects["scores"][:, None], objects["classes"][:, None]), 1)[None]
    rows[0, 29, 4] = 0.01  # too weak to be missed
    order = np.random.default_rng(0).permutation(30)
    assert output_differences([rows], [rows[:, order]], 0, True) == {"missing": 0, "box": 0, "score": 0}
    fewer = rows[:, :28]
    found = output_differences([rows], [fewer], 0, True)
    assert found == {"missing": 1, "box": 0, "score": 0}


def test_without_the_package_nothing_is_measured_and_the_page_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "page.md"
    kept.write_text("as it was")
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, "--out", str(kept), "--peer-python", str(tmp_path / "none")])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    said = f"not measured: the other package: {tmp_path / 'none'} cannot be run: No such file or directory\n"
    assert capsys.readouterr() == (said, "")
    assert kept.read_text() == "as it was"


def test_a_model_has_the_columns_of_its_task() -> None:
    row = {
        "name": "n-seg",
        "task": "segment",
        "output": {"box": 1e-4, "score": 0.0, "extra": 2e-5, "prototypes": 3e-6, "missing": 2.0},
        "objects": {"theirs": 12.0, "ours": 11.0, "both": 11.0, "box": 0.02, "score": 1e-6, "overlap": 0.99994},
    }
    classifier = {"name": "n-cls", "task": "classify", "output": {"score": 1e-7}, "objects": {"both": 1, "score": 2e-7}}
    found = {"models": [row, classifier], "versions": {"deploykit": "1"}, "peer": {"ultralytics": "8"}}
    text = numbers_page(found | {"img": 640, "image": ["a.jpg", 471, 600]})
    assert "| n-seg | 0.0001 | 0 | 2e-05 | 3e-06 | 2 |" in text
    assert "| n-cls |  | 1e-07 |  |  |  |" in text
    assert "| n-seg | 12 | 11 | 11 | 0.02 | 1e-06 |  | 0.99994 |" in text
    assert text.count("| n-cls |") == 1
    assert "The best class of 1 of 1 classifiers is the same, with a probability that differs by up to 2e-07." in text
    assert "a.jpg, 600 x 471" in text


def test_times_are_divided_by_theirs() -> None:
    row = {
        "name": "n",
        "export": {"theirs": 4.0, "ours": 8.0, "ours, --no-check": 2.0},
        "network": {"theirs": 50.0, "ours": 40.0},
        "predict": {"theirs, checkpoint": 80.0, "theirs, ONNX": 60.0, "ours": 45.0},
        "processor": {"theirs, checkpoint": 90.0, "theirs, ONNX": 100.0, "ours": 70.0},
        "megabytes": {"checkpoint": 2.0, "theirs": 5.0, "ours": 4.0},
        "nodes": {"theirs": 300, "ours": 200},
    }
    shown = [table.markdown().splitlines()[-1] for table in time_tables([row])]
    assert shown == [
        "| n | 4.0 | 8.0 (2.00) | 2.0 (0.50) |",
        "| n | 50.0 | 40.0 (0.80) |",
        "| n | 80.0 (1.33) | 60.0 | 45.0 (0.75) |",
        "| n | 90.0 (0.90) | 100.0 | 70.0 (0.70) |",
        "| n | 2.00 (0.40) | 5.00 | 4.00 (0.80) |",
        "| n | 300 | 200 (0.67) |",
    ]
