"""``deploykit serve``: answer requests with one or more models, over HTTP and gRPC."""

from __future__ import annotations

import argparse
import asyncio
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from deploykit.cli._compute import compute_flags, compute_of
from deploykit.cli._display import note, printable
from deploykit.cli._loading import add_verify
from deploykit.cli._options import Flag, Flags
from deploykit.cli._predict_files import max_pixels_flag, number_or_auto
from deploykit.errors import UsageError, import_extra

if TYPE_CHECKING:
    from deploykit.runtime.serve.core.options import ServeOptions

NEEDED = ("starlette", "uvicorn", "httptools", "python_multipart", "prometheus_client")
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

EXAMPLES = (
    ("deploykit serve best.onnx", "a page, images over HTTP and tensors at http://127.0.0.1:8000"),
    ("deploykit serve faces=a.onnx codes=b.onnx --grpc-port 8001", "two models, over gRPC too"),
    ("deploykit serve best.onnx --host 0.0.0.0 --token-file tokens.txt", "for other machines, with a token"),
    ("deploykit serve best.onnx --stream door=rtsp://camera/1", "results of a camera as they come"),
)


def serve_flags() -> Flags[ServeOptions]:
    """Return the options that fill :class:`deploykit.runtime.serve.core.options.ServeOptions`."""
    from deploykit.runtime.serve.core.options import ServeOptions

    return Flags(
        ServeOptions,
        {
            "where it listens": (
                Flag("--host", "host", "address to listen on; any but 127.0.0.1 needs a token or certificates", "HOST"),
                Flag("--port", "port", "port of HTTP; 0: any that is free", "N", int),
                Flag("--grpc-port", "grpc_port", "port of gRPC (default: no gRPC)", "N", int),
            ),
            "who may ask": (
                Flag("--token-file", "token_file", "file with tokens, of which a request must carry one", "FILE"),
                Flag("--tls-cert", "tls_cert", "the server's certificate (PEM)", "FILE"),
                Flag("--tls-key", "tls_key", "its key (PEM)", "FILE"),
                Flag("--tls-client-ca", "tls_client_ca", "authorities of clients' certificates (PEM)", "FILE"),
                Flag("--allow-host", "allow_host", "another name under which a server on 127.0.0.1 is asked", "NAME",
                     repeats=True, fills=tuple),
                Flag("--allow-url", "allow_url", "fetch images from this host; may be repeated", "HOST", repeats=True,
                     fills=tuple),
                Flag("--allow-reload", "allow_reload", "let clients load a model again"),
            ),
            "batches and limits": (
                Flag("--max-batch", "max_batch", "most images that run together, if the batch is dynamic", "N", int),
                Flag("--batch-window", "batch_window", "milliseconds to wait for others that are coming", "MS", float),
                Flag("--queue", "queue", "most requests of a model that wait or run", "N", int),
                Flag("--timeout", "timeout", "seconds in which a request must be answered", "S", float),
                Flag("--max-body", "max_body", "bytes of a request, such as 500k or 32m (default 32m)", "BYTES",
                     size_in_bytes),
                max_pixels_flag(),
                Flag("--connections", "connections", "most open connections", "N", int),
                Flag("--drain", "drain", "seconds that requests may take to end at the end", "S", float),
            ),
            "what is told": (
                Flag("--log-format", "log_format", "a line for each request on stderr", choices=("text", "json",
                     "none")),
                Flag("--stream", "streams", "source whose results are sent as they come; may be repeated",
                     "[NAME=]SOURCE", repeats=True, fills=streams_of),
            ),
        },
    )  # fmt: skip


def size_in_bytes(text: str) -> int:
    """Parse a number of bytes, which may end in k, m or g."""
    number, unit = (text[:-1], text[-1:].lower()) if text[-1:].isalpha() else (text, "")
    if not number.isdecimal() or unit not in UNITS:
        raise argparse.ArgumentTypeError(f"a number of bytes such as 500k or 32m is expected, got {text!r}")
    return int(number) * UNITS[unit]


def streams_of(words: list[str]) -> dict[str, str]:
    """Return the sources of streams by name; those without a name are called 0, 1, ...

    Raises:
        UsageError: a name occurs twice, or does not suit an address.
    """
    found: dict[str, str] = {}
    for number, word in enumerate(words):
        name, equals, source = word.partition("=")
        if not equals or not all(c.isalnum() or c in "_-." for c in name):
            name, source = str(number), word
        if name in found or not name:
            raise UsageError(f"two streams are called {name!r}: name them --stream NAME=SOURCE")
        found[name] = source
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "models", nargs="+", metavar="MODEL",
        help="a model; [NAME[:VERSION]=]FILE names it, which is else called as its file",
    )  # fmt: skip
    serve_flags().add(parser)
    compute_flags().add(parser)
    parser.add_argument(
        "--workers",
        type=number_or_auto,
        metavar="N",
        help="batches of a model at the same time; auto: by cores, a thread each (default: 2 that share the threads)",
    )
    parser.add_argument(
        "--memory-limit",
        type=size_in_bytes,
        metavar="BYTES",
        help="what runs on the CPU may hold together, without weights, such as 2g (default: $DEPLOYKIT_MEMORY_LIMIT)",
    )
    add_verify(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    for module in NEEDED:
        import_extra(module, "serve")
    from deploykit.facade import load
    from deploykit.runtime.backends.memory_limit import limit_memory
    from deploykit.runtime.pipeline.kept_memory import keep_freed_memory
    from deploykit.runtime.serve.core.registry import Registry, sources_of
    from deploykit.runtime.serve.server import Server

    keep_freed_memory()
    limit_memory(args.memory_limit)
    options = serve_flags().fill(args)
    if options.grpc_port is not None:
        import_extra("grpc", "serve")
        import_extra("google.protobuf", "serve")
    asked: dict[str, Any] = {**compute_of(args), "workers": args.workers, "max_pixels": options.max_pixels}
    registry = Registry(sources_of(args.models), partial(load, verify=args.verify, **asked), options)
    server = Server(registry)

    def ready() -> None:
        for model in registry.models:
            for each in model.predictor.notes:
                note(f"{model.source.name}: {each}")
        print(f"ready: {', '.join(printable(name) for name in registry.names)}", flush=True)

    async def listen() -> None:
        await server.run(ready)

    print(f"listening on {server.url}{' and for gRPC' * (options.grpc_port is not None)}; loading", flush=True)
    asyncio.run(listen())
    return 0
