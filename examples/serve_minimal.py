"""Serve a model over HTTP with nothing but Python's own server: an image in, JSON out.

    python examples/serve_minimal.py [--model FILE] [--port 8080]
    curl --data-binary @photo.jpg http://127.0.0.1:8080/

It answers with what `deploykit predict --json` prints. An image that cannot be read is 400, one over 32 MiB 413. It
listens on this machine alone and knows no users: put a server in front of it before others can reach it.
"""

import argparse
import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import deploykit

ASSETS = Path(deploykit.__file__).with_name("assets")
MOST = 32 * 2**20  # bytes of one image


def handler(model: deploykit.Predictor[deploykit.ImageResult]) -> type[BaseHTTPRequestHandler]:
    """Return what answers requests with the results of a model, which several threads may call."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 30  # seconds without a byte

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal():
                self.answer(HTTPStatus.LENGTH_REQUIRED, {"error": "expected the image's bytes and Content-Length"})
            elif int(length) > MOST:
                self.answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": f"an image has at most {MOST} bytes"})
            else:
                try:
                    self.answer(HTTPStatus.OK, model(self.rfile.read(int(length))).to_dict())
                except deploykit.DeployError as error:
                    self.answer(HTTPStatus.BAD_REQUEST, {"error": str(error)})

        def answer(self, status: HTTPStatus, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ASSETS / "markers.onnx"))
    parser.add_argument("--port", type=int, default=8080, help="0: any that is free")
    args = parser.parse_args()
    with deploykit.load(args.model) as model, ThreadingHTTPServer(("127.0.0.1", args.port), handler(model)) as server:
        print(f"{args.model} answers at http://127.0.0.1:{server.server_port}/", flush=True)
        server.serve_forever()
