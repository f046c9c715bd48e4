"""PyTriton with the bare network, for serving_peers.py: PYTHON serving_pytriton.py MODEL PORT GRPC_PORT.

It runs in an environment of its own, whose numpy is too old for deploykit. The model is called ``model``, and its
tensors travel by the Open Inference Protocol. A Python whose shared library is not the system's needs its folder in
``LD_LIBRARY_PATH``.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnxruntime as ort
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig, TritonSecurityConfig

WORKERS = 2
HOST = "127.0.0.1"
TOKEN = "local"  # what the client must send to be told statistics


def worker(model: str) -> Any:
    """Return what runs the network with one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    @batch  # type: ignore[untyped-decorator]
    def infer(images: Any) -> dict[str, Any]:
        return {"output": session.run(None, {"images": images})[0]}

    return infer


if __name__ == "__main__":
    path, port, grpc_port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    addresses = {"http_address": HOST, "http_port": port, "grpc_address": HOST, "grpc_port": grpc_port}
    config = TritonConfig(**addresses, allow_metrics=False)
    with Triton(config=config, security_config=TritonSecurityConfig(access_token=TOKEN)) as triton:
        triton.bind(
            "model",
            infer_func=[worker(path) for _ in range(WORKERS)],
            inputs=[Tensor(name="images", dtype=np.float32, shape=(3, -1, -1))],
            outputs=[Tensor(name="output", dtype=np.float32, shape=(-1, 19))],
            config=ModelConfig(max_batch_size=8, batcher=DynamicBatcher(max_queue_delay_microseconds=2000)),
        )
        triton.serve()
