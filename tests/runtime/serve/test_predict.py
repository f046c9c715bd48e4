"""``/v1``: an image in every form, its result as ``predict --json`` gives it, and what is refused."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any

import cv2
import httpx
import jsonschema
import numpy as np
import pytest
from starlette.routing import Mount, Route

import deploykit
from deploykit.runtime.serve.core.options import ServeOptions
from deploykit.runtime.serve.core.registry import Registry
from deploykit.runtime.serve.oip.http import protocol_routes
from tests.cell_model import RED
from tests.serving import ASSETS, MARKERS, CellNetwork, load_markers, served, wait_for

IMAGE = (ASSETS / "markers.jpg").read_bytes()


@pytest.fixture(scope="module")
def markers() -> Iterator[httpx.Client]:
    with (
        served([MARKERS, f"second:3={MARKERS}"], max_body=2_000_000, max_pixels=1_000_000) as (address, _),
        httpx.Client(base_url=address, timeout=30) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    with load_markers(MARKERS) as model:
        return model(IMAGE).to_dict()


def without_times(document: dict[str, Any]) -> dict[str, Any]:
    own = ("timings_ms", "timings", "name", "model", "request_id")
    return {name: value for name, value in document.items() if name not in own}


def cell_image(*cells: tuple[int, int]) -> bytes:
    """A black image with cells of pure red, which the network of cells finds."""
    image = np.zeros((64, 64, 3), np.uint8)
    for x, y in cells:
        image[8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = RED
    return cv2.imencode(".png", image)[1].tobytes()


@pytest.mark.parametrize(
    "ways",
    [
        {"content": IMAGE},
        {"content": IMAGE, "headers": {"content-type": "image/jpeg"}},
        {"files": {"file": ("holiday.jpg", IMAGE, "image/jpeg")}},
        {"json": {"image": base64.b64encode(IMAGE).decode(), "name": "holiday.jpg"}},
    ],
    ids=["bytes", "typed", "form", "json"],
)
def test_an_image_in_any_form_is_predicted_as_by_the_predictor(
    markers: httpx.Client, expected: dict[str, Any], ways: dict[str, Any]
) -> None:
    answer = markers.post("/v1/predict", **ways)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert without_times(found) == without_times(expected)
    assert found["name"] == ("holiday.jpg" if "content" not in ways else "image")
    assert found["model"] == {"name": "markers", "version": "1"}
    assert found["request_id"] == answer.headers["x-request-id"]
    stages = found["timings"]
    assert set(stages) == {"queue", "read", "letterbox", "inference", "postprocess", "total"}
    assert stages["total"] >= stages["inference"] > 0
    schema = json.loads(resources.files("deploykit").joinpath("assets/predict.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(found)


def test_options_are_those_of_the_predictor(markers: httpx.Client) -> None:
    asked = {"conf": 0.3, "max_det": 4, "classes": [0]}
    with deploykit.load(MARKERS, threads=1, **asked) as model:
        expected = without_times(model(IMAGE).to_dict())
    query = {"conf": "0.3", "max_det": "4", "classes": "qr code"}
    for answer in (
        markers.post("/v1/predict", params=query, content=IMAGE),
        markers.post("/v1/predict", data=query, files={"file": IMAGE}),
        markers.post("/v1/predict", json={"image": base64.b64encode(IMAGE).decode(), **asked}),
    ):
        assert answer.status_code == 200, answer.text
        assert without_times(answer.json()) == expected
        assert 0 < len(expected["detections"]) <= 4


def test_the_drawn_image_is_that_of_the_result(markers: httpx.Client) -> None:
    with load_markers(MARKERS) as model:
        drawn = model(IMAGE).draw()
    for answer, kind in (
        (markers.post("/v1/predict?format=png", content=IMAGE), "image/png"),
        (markers.post("/v1/predict", content=IMAGE, headers={"accept": "text/html, image/png;q=0.8"}), "image/png"),
        (markers.post("/v1/predict?format=image", content=IMAGE), "image/jpeg"),
    ):
        assert answer.headers["content-type"] == kind
        found = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)
        if kind == "image/png":
            np.testing.assert_array_equal(found, drawn)
        assert found.shape == drawn.shape


def test_the_models_are_described_and_an_example_posts_back(markers: httpx.Client) -> None:
    models = {model["name"]: model for model in markers.get("/v1/models").json()["models"]}
    assert set(models) == {"markers", "second"}
    facts = models["second"]
    assert (facts["version"], facts["task"], facts["classes"]) == ("3", "keypoints", ["qr code", "aruco marker"])
    assert len(facts["keypoints"]) == len(facts["limbs"]) == 4
    assert facts["options"]["conf"]["default"] == 0.5
    for name in models:
        body = markers.get("/v1/schema", params={"model": name}).content
        answer = markers.post("/v1/predict", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"]["name"] == name


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
PNG = cv2.imencode(".png", np.zeros((1001, 1000, 3), np.uint8))[1].tobytes()


@pytest.mark.parametrize(
    ("path", "ways", "status", "words"),
    [
        ("/v1/predict", {}, 400, "expected an image"),
        ("/v1/predict", {"content": b"nothing"}, 400, "image is not a complete image"),
        ("/v1/predict", {"content": IMAGE[:5000]}, 400, "damaged"),
        ("/v1/predict", {"content": HEIC}, 400, "a HEIC image, which OpenCV does not read: convert it"),
        ("/v1/predict?conf=2", {"content": IMAGE}, 400, "conf must lie in 0..1"),
        ("/v1/predict?conf=nan", {"content": IMAGE}, 400, "conf must be of type number"),
        ("/v1/predict?top=3", {"content": IMAGE}, 400, "'top' is no option of this model"),
        ("/v1/predict?classes=cat", {"content": IMAGE}, 400, "cat"),
        ("/v1/predict?format=gif", {"content": IMAGE}, 400, "format must be"),
        ("/v1/predict?model=third", {"content": IMAGE}, 404, "there is no model 'third' here"),
        ("/v1/predict?model=second&version=1", {"content": IMAGE}, 404, "the model second has no version '1'"),
        ("/v1/predict", {"content": PNG}, 413, "1000 x 1001 pixels, more than the 1,000,000"),
        ("/v1/predict", {"content": bytes(2_000_001)}, 413, "2,000,000 bytes"),
        ("/v1/predict", {"files": {"photo": IMAGE}}, 400, "no file in its field file"),
        ("/v1/predict", {"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "form"),
        ("/v1/predict", {"json": {"image": "%"}}, 400, "Base64"),
        ("/v1/predict", {"json": [1]}, 400, "JSON object"),
        ("/v1/predict", {"json": {"image": "", "classes": [[]] * 10_001}}, 400, "more than 10,000 values"),
        ("/v1/predict", {"json": {"url": "http://127.0.0.1/x.jpg"}}, 400, "fetches no addresses"),
        ("/v1/predict", {"content": IMAGE, "headers": {"x-request-timeout": "-1"}}, 400, "x-request-timeout"),
        ("/v1/nothing", {"content": IMAGE}, 404, "Not Found"),
    ],
)  # fmt: skip
def test_what_is_refused_and_why(
    markers: httpx.Client, path: str, ways: dict[str, Any], status: int, words: str
) -> None:
    answer = markers.post(path, **ways)
    assert answer.status_code == status, answer.text
    found = answer.json()
    assert set(found) == {"error", "code", "message"}
    assert words in found["message"]
    assert "/" not in found["message"].replace("multipart/form-data", "").replace("http://", "")


def test_a_body_without_a_declared_length_is_limited_too(markers: httpx.Client) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(100_000)

    answer = markers.post("/v1/predict", content=parts())
    assert answer.status_code == 413


def test_another_method_is_refused_and_the_page_has_its_policy(markers: httpx.Client) -> None:
    for method, path, allowed in (
        ("GET", "/v1/predict", {"POST"}),
        ("TRACE", "/metrics", {"GET", "HEAD"}),
        ("DELETE", "/", {"GET", "HEAD"}),
    ):
        answer = markers.request(method, path)
        assert answer.status_code == 405
        assert {each.strip() for each in answer.headers["allow"].split(",")} == allowed
    page = markers.get("/")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert markers.get("/../access.py").status_code == 404


def test_requests_that_come_together_share_a_batch_and_each_gets_its_own() -> None:
    network = CellNetwork()
    with served(["cells.onnx"], network.load) as (address, registry), ThreadPoolExecutor(9) as pool:
        network.batches.clear()
        network.go.clear()

        def ask(x: int) -> dict[str, Any]:
            found: dict[str, Any] = httpx.post(f"{address}/v1/predict", content=cell_image((x, 0)), timeout=30).json()
            return found

        first = pool.submit(ask, 0)
        wait_for(lambda: network.batches == [1])
        later = [pool.submit(ask, x) for x in range(1, 7)]
        wait_for(lambda: registry.models[0].batcher.waiting == 6)
        network.go.set()
        found = [each.result() for each in (first, *later)]
    assert network.batches == [1, 6]
    assert [answer["detections"][0]["box"][0] for answer in found] == [8 * x for x in range(7)]
    assert all(len(answer["detections"]) == 1 for answer in found)


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    network = CellNetwork()
    with served(["cells.onnx"], network.load, queue=2) as (address, registry), ThreadPoolExecutor(2) as pool:
        network.go.clear()
        waiting = [pool.submit(httpx.post, f"{address}/v1/predict", content=cell_image()) for _ in range(2)]
        wait_for(lambda: registry.models[0].active == 2)
        answer = httpx.post(f"{address}/v1/predict", content=cell_image())
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"] == "ServiceUnavailable"
        network.go.set()
        assert [each.result().status_code for each in waiting] == [200, 200]
        assert httpx.post(f"{address}/v1/predict", content=cell_image()).status_code == 200


def test_a_request_has_its_time_and_one_whose_client_left_is_not_computed() -> None:
    network = CellNetwork()
    with served(["cells.onnx"], network.load) as (address, registry), ThreadPoolExecutor(2) as pool:
        network.batches.clear()
        network.go.clear()
        first = pool.submit(httpx.post, f"{address}/v1/predict", content=cell_image(), timeout=30)
        wait_for(lambda: network.batches == [1])
        late = httpx.post(f"{address}/v1/predict", content=cell_image(), headers={"x-request-timeout": "0.05"})
        assert late.status_code == 504
        assert late.headers["connection"] == "close"
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/predict", content=cell_image(), timeout=httpx.Timeout(20, read=0.2))
        wait_for(lambda: registry.models[0].active == 1)
        network.go.set()
        assert first.result().status_code == 200
        assert network.batches == [1]


def test_an_image_that_ends_the_run_fails_alone_and_nobody_is_told_why() -> None:
    network = CellNetwork(fails=lambda images: bool((images[:, 0, 60:, 60:] == 1).any()))
    with served(["cells.onnx"], network.load) as (address, registry), ThreadPoolExecutor(3) as pool:
        network.go.clear()
        bodies = [cell_image((0, 0)), cell_image((7, 7)), cell_image((1, 0))]
        first = pool.submit(httpx.post, f"{address}/v1/predict", content=cell_image(), timeout=30)
        wait_for(lambda: registry.models[0].active == 1)
        asked = [pool.submit(httpx.post, f"{address}/v1/predict", content=body, timeout=30) for body in bodies[:2]]
        wait_for(lambda: registry.models[0].batcher.waiting == 2)
        network.go.set()
        good, bad = (each.result() for each in asked)
        assert first.result().status_code == good.status_code == 200
        assert bad.status_code == 500
        assert "ends the run" not in bad.text
        assert "log" in bad.json()["message"]


def test_metrics_count_what_was_asked(markers: httpx.Client) -> None:
    markers.post("/v1/predict", content=IMAGE, params={"model": "second"})
    lines = markers.get("/metrics").text.splitlines()
    counted = [line for line in lines if line.startswith('deploykit_requests_total{model="second"')]
    assert counted
    assert all(float(line.rpartition(" ")[2]) >= 1 for line in counted)
    assert any(
        line.startswith('deploykit_stage_seconds_bucket{le="0.001",model="second",stage="queue"}') for line in lines
    )
    assert "deploykit_ready 1.0" in lines


def test_openapi_describes_the_open_inference_protocol_too(markers: httpx.Client) -> None:
    paths = markers.get("/openapi.json").json()["paths"]
    for path, operations in paths.items():
        if path.startswith("/v2") and "get" in operations:
            answer = markers.get(path.replace("{name}", "second").replace("{version}", "3"))
            assert answer.status_code == 200, path
            (content,) = operations["get"]["responses"]["200"]["content"].values()
            jsonschema.validate(answer.json(), content["schema"])
    assert {"post"} == set(paths["/v2/models/{name}/versions/{version}/infer"])
    (route,) = (each for each in protocol_routes(Registry([], load_markers, ServeOptions())) if isinstance(each, Mount))
    served_paths = {f"/v2{each.path}" for each in route.routes if isinstance(each, Route)}
    assert served_paths <= set(paths)


def test_a_size_that_the_network_cannot_take_is_refused_with_those_that_it_takes(markers: httpx.Client) -> None:
    (about,) = markers.get("/v2/models/markers").json()["inputs"][:1]

    def answer(*sides: int) -> httpx.Response:
        count = 3 * sides[0] * sides[1]
        tensor = {"name": about["name"], "shape": [1, 3, *sides], "datatype": "FP32", "data": [0.5] * count}
        return markers.post("/v2/models/markers/infer", json={"inputs": [tensor]})

    assert answer(64, 96).status_code == 200
    refused = answer(33, 47)
    assert refused.status_code == 400
    assert "of 33 x 47: its sides are multiples of 32, such as" in refused.json()["error"]


def test_openapi_describes_every_path_of_v1(markers: httpx.Client) -> None:
    document = markers.get("/openapi.json").json()
    assert {"/v1/predict", "/v1/models", "/v1/schema"} <= set(document["paths"])
    result = {**document["components"]["schemas"]["Result"]}
    jsonschema.Draft202012Validator.check_schema(result)
    jsonschema.Draft202012Validator(result).validate(markers.post("/v1/predict", content=IMAGE).json())
    models = markers.get("/v1/models").json()["models"]
    asked = {each["name"] for each in document["paths"]["/v1/predict"]["post"]["parameters"]}
    assert asked == {"model", "version", "format", "pixels"}.union(*(model["options"] for model in models))
    page = markers.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "/v1/predict" in page.text


def test_threads_end_with_the_server() -> None:
    before = set(threading.enumerate())
    with served(["cells.onnx"], CellNetwork().load) as (address, _):
        assert httpx.post(f"{address}/v1/predict", content=cell_image()).status_code == 200
        assert {t.name.partition("_")[0] for t in set(threading.enumerate()) - before} >= {"model cells", "reading"}
    wait_for(lambda: not [t for t in set(threading.enumerate()) - before if t.name.startswith(("model", "reading"))])


def test_images_that_wait_hold_a_bounded_number_of_pixels() -> None:
    network, large = CellNetwork(), cell_image()
    with (
        served(["cells.onnx"], network.load, max_pixels=64 * 64) as (address, registry),
        ThreadPoolExecutor(8) as pool,
    ):
        network.go.clear()
        waiting = [pool.submit(httpx.post, f"{address}/v1/predict", content=large, timeout=30) for _ in range(8)]
        wait_for(lambda: registry.models[0].pixels == 8 * 64 * 64)
        answer = httpx.post(f"{address}/v1/predict", content=large)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "pixels" in answer.json()["message"]
        network.go.set()
        assert {each.result().status_code for each in waiting} == {200}
        assert registry.models[0].pixels == 0


def test_a_worker_of_one_thread_reads_and_runs_each_image_alone() -> None:
    with served(max_batch=8) as (address, registry), ThreadPoolExecutor(6) as pool:
        (model,) = registry.models
        assert model.predictor.session.threads == 1

        def ask(_: int) -> int:
            return httpx.post(f"{address}/v1/predict", content=IMAGE, timeout=30).status_code

        assert list(pool.map(ask, range(6))) == [200] * 6
        assert set(model.batcher.sizes) == {1}
        assert not any(thread.name.startswith("reading") for thread in registry._reading._threads)
        assert httpx.post(f"{address}/v1/predict", content=b"no image").status_code == 400
        assert ask(0) == 200
