"""The Open Inference Protocol with Triton's own clients, over HTTP and gRPC."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from deploykit.runtime.arrays import Array
from deploykit.runtime.serve.core.registry import Registry
from deploykit.runtime.serve.server import Server
from tests.serving import ASSETS, CellNetwork, running, wait_for

triton_http = pytest.importorskip("tritonclient.http", reason="tritonclient[http] (extra dev) is not installed")
triton_grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] (extra dev) is not installed")
from tritonclient.utils import InferenceServerException  # noqa: E402  # after the question whether it is there

NETWORK = CellNetwork()
IMAGES = np.random.default_rng(0).random((2, 3, 64, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def cells() -> Iterator[tuple[Server, Registry]]:
    options = {"grpc_port": 0, "max_batch": 4, "max_body": 4_000_000}
    with running(["cells=x.onnx", "cells:3=y.onnx"], NETWORK.load, **options) as found:
        yield found


@pytest.fixture(scope="module")
def http(cells: tuple[Server, Registry]) -> Iterator[Any]:
    with triton_http.InferenceServerClient(cells[0].url.removeprefix("http://"), concurrency=4) as client:
        yield client


@pytest.fixture(scope="module")
def grpc(cells: tuple[Server, Registry]) -> Iterator[Any]:
    with triton_grpc.InferenceServerClient(cells[0].grpc_address) as client:
        yield client


@pytest.fixture(params=["http", "grpc"])
def both(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A client, and the module that it is of."""
    return request.getfixturevalue(request.param), {"http": triton_http, "grpc": triton_grpc}[request.param]


def asked(module: Any, images: Array = IMAGES, datatype: str = "FP32", name: str = "images", **how: Any) -> list[Any]:
    found = module.InferInput(name, list(images.shape), datatype)
    found.set_data_from_numpy(images, **how)
    return [found]


def expected(images: Array = IMAGES) -> Array:
    return NETWORK({"images": images})["output"]


def as_json(answer: Any) -> Any:
    return answer if isinstance(answer, dict) else json.loads(answer)


def test_live_ready_and_metadata(both: tuple[Any, Any]) -> None:
    client, module = both
    how = {} if module is triton_http else {"as_json": True}
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("cells")
    assert client.is_model_ready("cells", "3")
    assert not client.is_model_ready("cells", "2")
    assert not client.is_model_ready("others")
    server = client.get_server_metadata(**how)
    assert server["name"] == "deploykit"
    assert "binary_tensor_data" in server["extensions"]
    model = client.get_model_metadata("cells", **how)
    assert (model["name"], model["versions"], model["platform"]) == ("cells", ["1", "3"], "onnxruntime_onnx")
    (image,) = model["inputs"]
    assert (image["name"], image["datatype"], list(map(int, image["shape"]))) == ("images", "FP32", [-1, 3, 64, 64])


def test_configuration_statistics_and_index(both: tuple[Any, Any]) -> None:
    client, module = both
    how = {} if module is triton_http else {"as_json": True}
    client.infer("cells", asked(module))
    config = client.get_model_config("cells", **how)
    config = config.get("config", config)
    assert config["max_batch_size"] == 4
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert list(map(int, config["input"][0]["dims"])) == [3, 64, 64]
    (known,) = client.get_inference_statistics("cells", **how)["model_stats"]
    assert int(known["inference_stats"]["success"]["count"]) >= 1
    assert int(known["inference_stats"]["compute_infer"]["ns"]) > 0
    assert int(known["execution_count"]) >= 1
    listed = client.get_model_repository_index(**how)
    listed = listed["models"] if isinstance(listed, dict) else listed
    assert [(each["name"], each["version"], each["state"]) for each in listed] == [
        ("cells", "1", "READY"),
        ("cells", "3", "READY"),
    ]


def test_tensors_in_and_out(both: tuple[Any, Any]) -> None:
    client, module = both
    answer = client.infer("cells", asked(module), request_id="seven", outputs=[module.InferRequestedOutput("output")])
    np.testing.assert_array_equal(answer.as_numpy("output"), expected())
    about = answer.get_response() if module is triton_http else answer.get_response(as_json=True)
    assert (about["id"], about["model_name"], about["model_version"]) == ("seven", "cells", "3")
    older = client.infer("cells", asked(module), model_version="1")
    about = older.get_response() if module is triton_http else older.get_response(as_json=True)
    assert about["model_version"] == "1"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_json_bytes_and_compression(http: Any, binary_in: bool, binary_out: bool, compression: str | None) -> None:
    answer = http.infer(
        "cells",
        asked(triton_http, binary_data=binary_in),
        outputs=[triton_http.InferRequestedOutput("output", binary_data=binary_out)],
        request_compression_algorithm=compression,
        response_compression_algorithm=None if compression is None else "gzip",
    )
    np.testing.assert_allclose(answer.as_numpy("output"), expected(), rtol=1e-6)


def test_requests_at_the_same_time_share_batches_and_each_gets_its_own(http: Any) -> None:
    NETWORK.batches.clear()
    images = [np.full((1, 3, 64, 64), i / 10, np.float32) for i in range(5)]
    waiting = [http.async_infer("cells", asked(triton_http, each)) for each in images]
    for each, answer in zip(images, waiting, strict=True):
        np.testing.assert_array_equal(answer.get_result().as_numpy("output"), expected(each))
    assert sum(NETWORK.batches) - 5 == 5  # five more are of the expected values


def test_a_batch_that_is_larger_than_the_limit_runs_alone(both: tuple[Any, Any]) -> None:
    client, module = both
    images = np.random.default_rng(1).random((6, 3, 64, 64)).astype(np.float32)
    np.testing.assert_array_equal(client.infer("cells", asked(module, images)).as_numpy("output"), expected(images))


@pytest.mark.parametrize(
    ("inputs", "how", "status", "words"),
    [
        ({"images": IMAGES[:, :, :32]}, {}, 400, "must be FP32 [-1, 3, 64, 64]"),
        ({"images": IMAGES.astype(np.float64), "datatype": "FP64"}, {}, 400, "got FP64"),
        ({"name": "pixels"}, {}, 400, "the inputs must be images (FP32)"),
        ({}, {"model_name": "others"}, 404, "no model 'others'"),
        ({}, {"model_version": "9"}, 404, "no version '9'"),
        ({}, {"sequence_id": 5}, 400, "sequence_id"),
    ],
    ids=["shape", "type", "name", "model", "version", "sequence"],
)
def test_what_is_refused(
    both: tuple[Any, Any], inputs: dict[str, Any], how: dict[str, Any], status: int, words: str
) -> None:
    client, module = both
    codes = {400: "StatusCode.INVALID_ARGUMENT", 404: "StatusCode.NOT_FOUND"}
    with pytest.raises(InferenceServerException) as refused:
        client.infer(inputs=asked(module, **inputs), **{"model_name": "cells", **how})
    assert refused.value.status() == (str(status) if module is triton_http else codes[status])
    assert words in refused.value.message()


def test_an_unknown_output_is_refused(both: tuple[Any, Any]) -> None:
    client, module = both
    with pytest.raises(InferenceServerException, match="no output 'masks'"):
        client.infer("cells", asked(module), outputs=[module.InferRequestedOutput("masks")])


def test_images_become_documents(both: tuple[Any, Any]) -> None:
    client, module = both
    image = (ASSETS / "markers.jpg").read_bytes()
    data = np.array([image, image], object)
    answer = client.infer("cells", asked(module, data, "BYTES", "image"), parameters={"max_det": 1})
    found = [json.loads(text) for text in answer.as_numpy("result")]
    assert [each["name"] for each in found] == ["image0", "image1"]
    assert all(each["size"] == [800, 1200] and len(each["detections"]) <= 1 for each in found)
    column = client.infer("cells", asked(module, data[:, None], "BYTES", "image")).as_numpy("result")
    assert column.shape == (2, 1), "as the repository for Triton has it"
    with pytest.raises(InferenceServerException, match="image0 is not a complete image"):
        client.infer("cells", asked(module, np.array([b"?"], object), "BYTES", "image"))


def test_a_stream_of_grpc_answers_in_order_and_errors_are_answers(grpc: Any) -> None:
    answers: list[Any] = []
    grpc.start_stream(lambda result, error: answers.append(error or result))
    for i, name in enumerate(("cells", "others", "cells")):
        grpc.async_stream_infer(name, asked(triton_grpc), request_id=str(i))
    grpc.stop_stream()
    np.testing.assert_array_equal(answers[0].as_numpy("output"), expected())
    assert "no model 'others'" in str(answers[1])
    assert answers[2].get_response().id == "2"


def test_a_deadline_is_kept(both: tuple[Any, Any]) -> None:
    client, module = both
    NETWORK.go.clear()
    try:
        with pytest.raises(InferenceServerException) as late:
            client.infer("cells", asked(module), timeout=50_000)
        assert late.value.status() in ("504", "StatusCode.DEADLINE_EXCEEDED")
    finally:
        NETWORK.go.set()


def test_a_call_that_is_given_up_is_not_computed(cells: tuple[Server, Registry], grpc: Any) -> None:
    model = cells[1].get("cells")
    NETWORK.batches.clear()
    NETWORK.go.clear()
    answers: list[Any] = []
    try:
        grpc.async_infer("cells", asked(triton_grpc), lambda result, error: answers.append(error or result))
        wait_for(lambda: NETWORK.batches == [2])
        with pytest.raises(InferenceServerException, match="Deadline"):
            grpc.infer("cells", asked(triton_grpc), client_timeout=0.2)
        wait_for(lambda: model.active == 1)
    finally:
        NETWORK.go.set()
    wait_for(lambda: answers)
    assert NETWORK.batches == [2]
    np.testing.assert_array_equal(answers[0].as_numpy("output"), expected())


def test_models_are_loaded_again_only_where_that_is_allowed(both: tuple[Any, Any]) -> None:
    client, _ = both
    with pytest.raises(InferenceServerException, match="does not let clients load"):
        client.load_model("cells")
    with pytest.raises(InferenceServerException, match="stay loaded"):
        client.unload_model("cells")


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (b"{", {}, 400, "not JSON"),
        (b"[]", {}, 400, "a JSON object"),
        (b"{}", {}, 400, "inputs must be a list"),
        (b'{"inputs": [1]}', {}, 400, "an input must be a JSON object"),
        (b'{"inputs": []}', {}, 400, "the inputs must be"),
        (b'{"inputs": []}xyz', {"inference-header-content-length": "14"}, 400, "3 bytes after the JSON"),
        (b"{}", {"inference-header-content-length": "9"}, 400, "number of bytes of the JSON"),
        (b"{}", {"content-encoding": "br"}, 415, "gzip or deflate"),
        (b"{}", {"content-encoding": "gzip"}, 400, "damaged"),
        (b'{"inputs": [{"name": "images", "datatype": "FP32", "shape": [1], "data": [1e999]}]}', {}, 400, "must be FP"),
        (b'{"inputs": [{"name": "i", "datatype": "INT8", "shape": [1], "data": [300]}]}', {}, 400, "does not fit"),
        (b'{"inputs": [{"name": "i", "datatype": "FP32", "shape": [2, 0], "data": []}]}', {}, 400, "the shape of 'i'"),
        (b'{"inputs": [{"name": "i", "datatype": "FP32", "shape": [999999999, 999999999], "data": [1]}]}', {}, 400,
         "values, got 1"),
        (b'{"inputs": [{"name": "i", "datatype": "FP33", "shape": [1], "data": [1]}]}', {}, 400, "datatype of 'i'"),
        (b'{"inputs": [{"name": "i", "datatype": "FP32", "shape": [1]}]}', {}, 400, "either data or"),
        (b'{"inputs": [{"name": "i", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}]}', {},
         400, "at most the 0 bytes"),
    ],
)  # fmt: skip
def test_a_body_that_is_none_is_refused_with_its_reason(
    cells: tuple[Server, Registry], body: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    answer = httpx.post(f"{cells[0].url}/v2/models/cells/infer", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert words in answer.json()["error"]


def test_a_compressed_body_has_the_limit_of_a_plain_one(cells: tuple[Server, Registry]) -> None:
    import gzip

    packed = gzip.compress(bytes(50_000_000), 1)
    assert len(packed) < 4_000_000
    answer = httpx.post(
        f"{cells[0].url}/v2/models/cells/infer", content=packed, headers={"content-encoding": "gzip"}, timeout=30
    )
    assert answer.status_code == 413
    assert "unpacks to more" in answer.json()["error"]
