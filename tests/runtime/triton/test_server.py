"""A real Triton serves a repository and gives the predictor's own results.

The environment variable ``DEPLOYKIT_TRITONSERVER`` names a ``tritonserver``, such as that in the wheel nvidia-pytriton
in an environment of this Python with numpy, OpenCV, PyYAML, rich and onnxruntime. That one has the Python backend
alone, so ONNX Runtime runs the network in a Python model here, in place of Triton's own backend.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploykit
from tests.triton_repository import CASES, repository_of

SERVER = os.environ.get("DEPLOYKIT_TRITONSERVER", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SERVER, reason="DEPLOYKIT_TRITONSERVER names no tritonserver"),
]

NETWORK = """
from pathlib import Path
import numpy as np
import onnxruntime
import triton_python_backend_utils as backend


class TritonPythonModel:
    def initialize(self, args):
        file = Path(args["model_repository"], args["model_version"], "model.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        given = backend.get_input_tensor_by_name(request, self.name).as_numpy()
        outputs = self.session.run(None, {self.name: given})
        names = [output.name for output in self.session.get_outputs()]
        return backend.InferenceResponse([backend.Tensor(n, v) for n, v in zip(names, outputs)])
"""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[tuple[str, Path]]:
    """The address of a running Triton with every case, and the folder of their models."""
    folder = tmp_path_factory.mktemp("triton")
    for case in CASES:
        _, repository = repository_of(folder, case)
        config = repository / f"{case}_network" / "config.pbtxt"
        text = re.sub(r"platform: .*\nbackend: .*\n", 'backend: "python"\n', config.read_text())
        config.write_text(text)
        (config.parent / "1" / "model.py").write_text(NETWORK)
    program = Path(SERVER).resolve()
    http, grpc, metrics = free_ports(3)
    environment = {
        # The stub takes its packages from the environment whose Python is first here, and no PYTHONPATH.
        "PATH": os.pathsep.join((str(environment_of(program) / "bin"), os.environ["PATH"])),
        # It loads the shared library of Python, which must be that of the packages.
        "LD_LIBRARY_PATH": f"{sys.base_prefix}/lib",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        str(program), f"--model-repository={repository}", "--http-address=127.0.0.1", f"--http-port={http}",
        "--grpc-address=127.0.0.1", f"--grpc-port={grpc}", f"--metrics-port={metrics}", "--metrics-address=127.0.0.1",
        f"--backend-directory={backends_of(program, folder)}", "--exit-on-error=true", "--allow-gpu-metrics=false",
    ]  # fmt: skip
    log = folder / "triton.log"
    with (
        log.open("wb") as stream,
        subprocess.Popen(command, cwd=root, env=environment, stdout=stream, stderr=stream) as process,
    ):
        try:
            address = f"127.0.0.1:{http}"
            wait_until_ready(address, process, log)
            yield address, folder
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def environment_of(program: Path) -> Path:
    """The virtual environment in which the program is installed."""
    return next(folder for folder in program.parents if (folder / "pyvenv.cfg").is_file())


def backends_of(program: Path, folder: Path) -> Path:
    """A folder of backends with the stub for this Python, which the wheel keeps apart."""
    own, place = program.parent.parent, folder / "backends" / "python"
    place.mkdir(parents=True)
    stubs = own / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    for file in (*(own / "backends" / "python").iterdir(), *(stubs.iterdir() if stubs.is_dir() else ())):
        (place / file.name).symlink_to(file)
    return place.parent


def wait_until_ready(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until every model is ready; fail with the log if Triton ends before."""
    for _ in range(240):
        if process.poll() is not None:
            pytest.fail(log.read_text()[-6000:])
        try:
            with urllib.request.urlopen(f"http://{address}/v2/health/ready", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    pytest.fail(log.read_text()[-6000:])


@pytest.mark.parametrize("case", CASES)
def test_triton_gives_the_predictors_results(case: str, served: tuple[str, Path]) -> None:
    client: Any = pytest.importorskip("tritonclient.http")
    address, folder = served
    images = CASES[case][1]
    with client.InferenceServerClient(address) as connection:
        batched = connection.get_model_config(case)["max_batch_size"] > 0
        given = np.array(images, np.object_)
        given = given[:, None] if batched else given
        tensor = client.InferInput("image", given.shape, "BYTES")
        tensor.set_data_from_numpy(given)
        answer = connection.infer(case, [tensor])
        names = [output["name"] for output in answer.get_response()["outputs"]]
        found = {name: answer.as_numpy(name) for name in names}
    with deploykit.load(folder / f"{case}.onnx", device="cpu", threads=1) as predictor:
        expected: list[Any] = predictor(images)
    assert set(found) > {"result"}
    for text, result in zip(found.pop("result").ravel(), expected, strict=True):
        document = json.loads(text)
        assert document.pop("timings_ms")
        own = result.to_dict()
        del own["timings_ms"]
        assert document == own
    counts = found.pop("count", None)
    assert counts is None or counts.ravel().tolist() == [len(result) for result in expected]
    for name, values in found.items():
        for value, result in zip(values, expected, strict=True):
            own = np.asarray(getattr(result, name))
            np.testing.assert_array_equal(value[: len(own)], own)


def test_triton_answers_a_damaged_image_and_then_a_good_one(served: tuple[str, Path]) -> None:
    client: Any = pytest.importorskip("tritonclient.http")
    with client.InferenceServerClient(served[0]) as connection:

        def infer(image: bytes) -> Any:
            tensor = client.InferInput("image", (1, 1), "BYTES")
            tensor.set_data_from_numpy(np.array([[image]], np.object_))
            return connection.infer("keypoints", [tensor], outputs=[client.InferRequestedOutput("count")])

        with pytest.raises(client.InferenceServerException, match="image0"):
            infer(b"no image")
        assert infer(CASES["keypoints"][1][0]).as_numpy("count").item() == 1
