"""LitServe with the Predictor, for serving_peers.py: PYTHON serving_litserve.py MODEL PORT, in LitServe's environment.

The body of a request is JSON with an image in Base64, and the answer is the JSON of its result, at ``/predict``.
"""

from __future__ import annotations

import base64
import sys
from typing import Any

import litserve as ls

import deploykit


class Api(ls.LitAPI):  # type: ignore[misc]
    """The model, with one thread in each worker."""

    def setup(self, device: str) -> None:
        """Open the model in a worker."""
        self.predictor = deploykit.load(sys.argv[1], threads=1)

    def decode_request(self, request: dict[str, str]) -> bytes:
        """Return the bytes of the image."""
        return base64.b64decode(request["image"])

    def predict(self, x: bytes) -> dict[str, Any]:
        """Return the result."""
        return self.predictor(x).to_dict()

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Return what is sent."""
        return output


if __name__ == "__main__":
    server = ls.LitServer(Api(), accelerator="cpu", workers_per_device=2)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
