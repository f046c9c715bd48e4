"""The ensemble of a repository gives the predictor's own results, through a stand-in that checks every tensor."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import deploykit
from tests.triton_repository import BLOCKS, CASES, Ensemble, noise, png, repository_of


def without_times(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != "timings_ms"}


@pytest.mark.parametrize("case", CASES)
def test_documents_and_arrays_are_those_of_the_predictor(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = CASES[case][1]
    file, repository = repository_of(tmp_path, case)
    found = Ensemble(repository, case, monkeypatch)(images)
    with deploykit.load(file, device="cpu") as predictor:
        expected: list[Any] = predictor(images)
    documents = [json.loads(text) for text in found["result"].ravel()]
    assert [without_times(each) for each in documents] == [without_times(each.to_dict()) for each in expected]
    assert all("postprocess" in each["timings_ms"] for each in documents)
    for name, values in found.items():
        if name in ("result", "count"):
            continue
        for value, result in zip(values, expected, strict=True):
            own = np.asarray(getattr(result, name))
            np.testing.assert_array_equal(value[: len(own)], own)
            assert not value[len(own) :].any()
    if "count" in found:
        assert found["count"].ravel().tolist() == [len(each) for each in expected]
        assert sum(found["count"]) > 0, "a comparison of nothing tells nothing"


def test_parameters_of_the_configuration_are_options_of_the_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, repository = repository_of(tmp_path, "keypoints")
    config = repository / "keypoints_postprocess" / "config.pbtxt"
    text = config.read_text()
    image = png(BLOCKS[1])
    assert Ensemble(repository, "keypoints", monkeypatch)([image])["count"].item() == 2
    config.write_text(f'{text}parameters {{ key: "max_det" value {{ string_value: "1" }} }}\n')
    assert Ensemble(repository, "keypoints", monkeypatch)([image])["count"].item() == 1
    config.write_text(f'{text}parameters {{ key: "max_det" value {{ string_value: "many" }} }}\n')
    with pytest.raises(deploykit.DeployError, match="the parameter 'max_det' must be int, got 'many'"):
        Ensemble(repository, "keypoints", monkeypatch)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([b"no image"], "image0"),
        ([png(BLOCKS[0])] * 5, "expected 1 to 4 images in a request, got 5"),
    ],
)
def test_a_request_that_cannot_be_answered_gets_its_error(
    images: list[bytes], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, repository = repository_of(tmp_path, "fixed")
    ensemble = Ensemble(repository, "fixed", monkeypatch)
    with pytest.raises(ValueError, match=said):
        ensemble(images)
    assert len(ensemble([png(BLOCKS[0])])["result"]) == 1


def test_images_on_canvases_of_different_sizes_are_refused_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, repository = repository_of(tmp_path, "restore")
    ensemble = Ensemble(repository, "restore", monkeypatch)
    with pytest.raises(ValueError, match="different sizes: send one image per request"):
        ensemble([noise(50, 64), noise(64, 50)])
    alike = ensemble([noise(50, 64), noise(50, 64)])
    assert alike["pixels"].shape == (2, 50, 64, 3)


def test_arrays_of_different_images_are_refused_only_if_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, repository = repository_of(tmp_path, "segment")
    images = [noise(70, 50), noise(40, 60)]
    ensemble = Ensemble(repository, "segment", monkeypatch)
    assert len(ensemble(images, ["result"])["result"]) == 2
    with pytest.raises(ValueError, match="'labels' cannot be one array: send one image per request"):
        ensemble(images, ["labels"])


def test_a_failure_of_the_network_is_the_error_of_the_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, repository = repository_of(tmp_path, "tiles")
    ensemble = Ensemble(repository, "tiles", monkeypatch)
    failed = SimpleNamespace(has_error=lambda: True, error=lambda: SimpleNamespace(message=lambda: "out of memory"))
    backend = sys.modules["triton_python_backend_utils"]
    monkeypatch.setattr(backend, "InferenceRequest", lambda **_: SimpleNamespace(exec=lambda: failed))
    with pytest.raises(ValueError, match="tiles_network failed: out of memory"):
        ensemble(CASES["tiles"][1])
