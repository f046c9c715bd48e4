"""What the page in a browser is given: its files, what models offer, and the pixels of results."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deploykit
from deploykit.runtime.backends.fake import FakeSession
from deploykit.runtime.drawing.palette import class_colour
from deploykit.runtime.options import PredictOptions
from deploykit.runtime.outputs import adapter_of
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.results.dense import LabelMap
from deploykit.runtime.serve.app import PAGE
from deploykit.spec import EndToEndRows, KeypointSpec, ModelSpec, NmsOutputs, PoseObjectRows, RawDetections, Thresholds
from tests.cell_model import cell_spec
from tests.dense_networks import brightener, classifier, segmenter
from tests.serving import MARKERS, served

FILES = sorted(file.name for file in PAGE.iterdir())


def png(image: Any) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def noise(height: int, width: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_the_page_is_one_folder_of_files_that_need_nothing_else() -> None:
    known = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    with served([MARKERS]) as (address, _), httpx.Client(base_url=address) as client:
        page = client.get("/")
        for name in FILES:
            answer = client.get(f"/{name}")
            assert answer.status_code == 200
            assert answer.headers["content-type"].partition(";")[0] == known[name.rpartition(".")[2]]
            assert answer.headers["cache-control"] == "no-cache"
            policy = answer.headers["content-security-policy"]
            assert "unsafe" not in policy
            assert {"default-src 'none'", "script-src 'self'", "style-src 'self'"} <= set(policy.split("; "))
    assert page.text == (PAGE / "index.html").read_text()
    assert len(FILES) > 5


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_page_names_files_beside_it_and_no_other_address(name: str) -> None:
    text = (PAGE / name).read_text()
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg|127\.0\.0\.1)", text)
    assert not re.search(r"""\son\w+=|style=["']|javascript:|innerHTML|eval\(|@import""", text)
    named = re.findall(r"""(?:src|href)="(?!#)([^"]+)"|from "\./([^"]+)";""", text)
    assert {a or b for a, b in named} <= {*FILES, "docs", "openapi.json", "metrics"}


def test_every_id_that_the_page_uses_is_there() -> None:
    used = set(re.findall(r"\bids\.(\w+)|\bids\[\"([\w-]+)\"\]", (PAGE / "main.js").read_text()))
    there = set(re.findall(r'\bid="([\w-]+)"', (PAGE / "index.html").read_text()))
    assert {a or b for a, b in used} <= there


def test_colours_are_those_that_results_are_drawn_in() -> None:
    with served([MARKERS]) as (address, _):
        colours = httpx.get(f"{address}/v1/models").json()["colours"]
    for label in (0, 1, 95, 96, 287, 288, 1000):
        blue, green, red = class_colour(label)
        assert colours[label % len(colours)] == f"#{red:02x}{green:02x}{blue:02x}"


def test_a_label_map_and_a_restored_image_come_as_png_where_they_are_asked_for(tmp_path: Path) -> None:
    paths = [str(make(tmp_path / f"{make.__name__}.onnx")) for make in (segmenter, brightener, classifier)]
    image = noise(32, 48)
    with served(paths, lambda path: deploykit.load(path, threads=1)) as (address, _):
        for path in paths:
            query = {"model": Path(path).stem}
            with deploykit.load(path, threads=1) as model:
                expected = model(image)
            plain = httpx.post(f"{address}/v1/predict", params=query, content=png(image)).json()
            full = httpx.post(f"{address}/v1/predict", params={**query, "pixels": "1"}, content=png(image)).json()
            assert "png" not in plain
            pixels = getattr(expected, "labels" if isinstance(expected, LabelMap) else "pixels", None)
            assert ("png" in full) == (pixels is not None)
            if pixels is not None:
                read = np.frombuffer(base64.b64decode(full["png"]), np.uint8)
                found = cv2.imdecode(read, cv2.IMREAD_UNCHANGED)
                assert found.dtype == np.uint8
                np.testing.assert_array_equal(found, pixels)
        refused = httpx.post(f"{address}/v1/predict?pixels=yes", content=png(image))
        assert refused.status_code == 400
        assert "pixels must be 1 or 0" in refused.json()["message"]


def test_a_label_map_of_many_classes_has_16_bits() -> None:
    labels = np.array([[0, 255, 256], [1000, 3, 3]])
    found = cv2.imdecode(np.frombuffer(LabelMap(size=(2, 3), labels=labels).to_png(), np.uint8), cv2.IMREAD_UNCHANGED)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, labels)


ROWS = replace(cell_spec(), task="detect", keypoints=None, output=RawDetections(cls=(5, 7)))
CHOSEN = replace(ROWS, output=EndToEndRows())


@given(
    spec=st.sampled_from([ROWS, CHOSEN]),
    seed=st.integers(0, 10_000),
    confidences=st.tuples(st.integers(1, 99), st.integers(1, 99)).map(sorted),
    options=st.fixed_dictionaries({}, optional={"max_det": st.integers(1, 9), "multi_label": st.booleans()}),
)
@settings(max_examples=60)
def test_a_threshold_that_filters_gives_what_the_model_gives_at_it(
    spec: ModelSpec, seed: int, confidences: list[int], options: dict[str, Any]
) -> None:
    random = np.random.default_rng(seed)
    rows = random.random((1, 40, 7 if spec is ROWS else 6), np.float32)
    rows[..., :4] = 4 + 50 * rows[..., :4]
    if spec is CHOSEN:
        rows[..., 2:4] += rows[..., :2]
        rows[..., 5] = rows[..., 5] > 0.5
    low, high = (each / 100 for each in confidences)
    answer = FakeSession(lambda _: {"output": rows}, spec=spec)
    results = [
        Predictor(answer, options=PredictOptions(conf=conf, **options))(np.zeros((64, 64, 3), np.uint8))
        for conf in (low, high)
    ]
    assert adapter_of(spec, None).offers()["conf"]["filter"]
    lower, higher = ([found.to_dict() for found in result] for result in results)
    assert [found for found in lower if np.float32(found["score"]) > np.float32(high)] == higher


def test_a_model_offers_what_can_be_changed_in_it() -> None:
    poses = ModelSpec(
        "keypoints", cell_spec().input, PoseObjectRows(cls=(5, 7), coords=(7, 9)), ("person",), KeypointSpec(("nose",))
    )
    inside = replace(ROWS, output=NmsOutputs(), thresholds=Thresholds(conf=0.3, max_det=50))
    offers = {kind: adapter_of(spec, None).offers() for kind, spec in {
        "rows": ROWS, "chosen": CHOSEN, "poses": poses, "inside": inside
    }.items()}  # fmt: skip
    assert set(offers["rows"]) == {"conf", "iou", "max_det", "multi_label", "classes", "agnostic"}
    assert "iou" not in offers["chosen"]
    assert "iou" not in offers["inside"]
    assert offers["inside"]["conf"] == {"filter": True, "minimum": 0.3}
    assert offers["inside"]["max_det"] == {"maximum": 50}
    assert offers["poses"]["conf"] == {}
    assert not {"classes", "agnostic"} & set(offers["poses"])
