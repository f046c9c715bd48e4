"""Requests over gRPC: messages with other fields, types and lengths, to a server that listens on this machine."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from random import Random
from typing import Any

import grpc
import numpy as np

from deploykit.errors import UsageError
from deploykit.runtime.serve.core.observers import Observers
from deploykit.runtime.serve.core.options import ServeOptions
from deploykit.runtime.serve.core.registry import Registry, sources_of
from deploykit.runtime.serve.oip.grpc_server import GrpcServer
from deploykit.runtime.serve.oip.messages import METHODS, SERVICE, message
from tests.fuzz.mutate import INTEGERS, changed_bytes
from tests.fuzz.protobuf import changed_message
from tests.fuzz.target import Failed, Files, Target
from tests.serving import CellNetwork

UNREADABLE = "Exception deserializing request!"  # what gRPC itself answers to bytes that are no message
FAULTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED)
METADATA = (
    ("authorization", "Bearer x"), ("x-request-id", "a"), ("traceparent", "x"), ("x-bin-bin", b"\x00\xff"),
    ("x-request-id", "a" * 500),
)  # fmt: skip


class GrpcRequests(Target):
    """A call is answered, and never with the news of a fault in the server."""

    name, memory, room = "grpc_requests", 192 << 20, 1 << 30

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        tensor = message("ModelInferRequest.InferInputTensor")(name="images", datatype="FP32", shape=[1, 3, 64, 64])
        raw = np.zeros((1, 3, 64, 64), np.float32).tobytes()
        listed = message("ModelInferRequest.InferInputTensor")(name="images", datatype="FP32", shape=[1, 1])
        listed.contents.fp32_contents.append(0.5)
        kind = message("ModelInferRequest")
        whole = kind(model_name="cells", model_version="1", id="a", inputs=[tensor], raw_input_contents=[raw])
        whole.outputs.add(name="output")
        whole.parameters["priority"].int64_param = 1
        self.inferences = [whole.SerializeToString(), kind(model_name="cells", inputs=[listed]).SerializeToString()]
        self.named = message("ModelReadyRequest")(name="cells", version="1").SerializeToString()
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self._start())

    async def _start(self) -> None:
        options = ServeOptions(
            log_format="none", grpc_port=0, max_body=200_000, timeout=5, allow_reload=True, batch_window=0
        )
        self.registry = Registry(sources_of(["cells=x.onnx", "cells:3=y.onnx"]), CellNetwork().load, options)
        await self.registry.start()
        self.observers = Observers.of(self.registry)
        self.server = GrpcServer(self.registry, lambda _: None, self.observers)
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.server.port}")

    def make(self, random: Random) -> Files:
        method = random.choice((*["ModelInfer"] * 12, *METHODS))
        if method == "ModelInfer":
            data = changed_message(random, random.choice(self.inferences))
            if random.random() < 0.3:
                data = _wrong_tensor(random)
        else:
            data = changed_message(random, self.named)
        if random.random() < 0.05:
            data = changed_bytes(random, data)
        return {"message": data, "method": method.encode(), "metadata": bytes([random.randrange(2 * len(METADATA))])}

    def take(self, files: Files) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            self.loop.run_until_complete(self._ask(files))

    async def _ask(self, files: Files) -> None:
        call = self.channel.unary_unary(f"/{SERVICE}/{files['method'].decode()}")
        metadata = [METADATA[files["metadata"][0]]] if files["metadata"][0] < len(METADATA) else []
        try:
            await call(files["message"], metadata=metadata, timeout=9)
        except grpc.aio.AioRpcError as e:
            if e.code() in FAULTS and e.details() != UNREADABLE:
                raise Failed(f"answered with {e.code()}: {e.details()}") from e
            raise UsageError(f"{e.code()}") from e

    def close(self) -> None:
        self.loop.run_until_complete(self._stop())
        self.loop.close()

    async def _stop(self) -> None:
        await self.channel.close()
        await self.server.stop(0)
        await self.registry.stop()
        self.observers.close()


def _wrong_tensor(random: Random) -> bytes:
    """Return an inference whose tensor's type, shape and values do not go together."""
    kind = random.choice(("FP32", "FP16", "BYTES", "INT8", "UINT64", "BOOL", "x", ""))
    sizes = [random.choice((*INTEGERS, 1, 2, 3, 64)) % 2**63 for _ in range(random.randint(0, 5))]
    tensor: Any = message("ModelInferRequest.InferInputTensor")(name="images", datatype=kind, shape=sizes)
    request: Any = message("ModelInferRequest")(model_name="cells")
    if random.random() < 0.5:
        request.raw_input_contents.append(random.randbytes(random.choice((0, 1, 4, 100, 49152))))
    else:
        tensor.contents.fp32_contents.extend([0.5] * random.choice((0, 1, 3, 5000)))
        tensor.contents.bytes_contents.append(random.randbytes(8))
    request.inputs.append(tensor)
    found: bytes = request.SerializeToString()
    return found


TARGET = GrpcRequests
