"""``deploykit cluster serve`` and ``manifest``: models on Ray Serve, and the manifest for Kubernetes."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.cli._compute import compute_of
from deploykit.cli._display import aside
from deploykit.cli._model import model_of
from deploykit.cli._options import Flag, Flags
from deploykit.errors import UsageError

if TYPE_CHECKING:
    from deploykit.runtime.cluster.scaling import Scaling
    from deploykit.runtime.serve.core.options import ServeOptions

BUILD = "deploykit.cli._cluster_serve:build"
"""What Ray Serve calls for the application, see :func:`build`."""


def server_flags() -> Flags[ServeOptions]:
    """Return the options of the server that ``cluster serve`` has."""
    from deploykit.runtime.serve.core.options import ServeOptions

    flags = (
        Flag("--host", "host", "address to listen on; any but 127.0.0.1 needs --token-file", "HOST"),
        Flag("--port", "port", "port of HTTP", "N", int),
        Flag("--token-file", "token_file", "file with tokens, of which a request must carry one", "FILE"),
        Flag("--max-batch", "max_batch", "most images together, with a dynamic batch", "N", int),
        Flag("--batch-window", "batch_window", "milliseconds to wait for others that are coming", "MS", float),
        Flag("--queue", "queue", "most requests that wait or run in a replica", "N", int),
        Flag("--timeout", "timeout", "seconds until a request must be answered", "S", float),
        Flag(
            "--log-format",
            "log_format",
            "a line for each request in its log",
            choices=("text", "json", "none"),
        ),
    )
    return Flags(ServeOptions, {"serve": flags})


def scaling_flags() -> Flags[Scaling]:
    """Return the options of replicas."""
    from deploykit.runtime.cluster.scaling import Scaling

    ongoing = "requests that a replica should have: more add replicas"
    flags = (
        Flag("--min-replicas", "min_replicas", "least replicas", "N", int),
        Flag("--max-replicas", "max_replicas", "most replicas", "N", int),
        Flag("--ongoing", "ongoing", ongoing, "N", float),
    )
    return Flags(Scaling, {"serve, manifest": flags})


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of serving."""
    server_flags().add(parser)
    scaling_flags().add(parser)
    group = parser.add_argument_group("manifest")
    group.add_argument("--image", metavar="IMAGE", help="the image with deploykit and Ray, and the models in /models")
    group.add_argument("--name", metavar="NAME", help="of the service (default: that of the first model)")
    group.add_argument("--memory", metavar="SIZE", default="4Gi", help="of each pod (default 4Gi)")


def build(given: Mapping[str, Any]) -> Any:
    """Return the application of Ray Serve for the arguments of its configuration.

    Args:
        given: ``models``, a list of ``[NAME=]FILE``; ``device``, ``threads`` and ``verify`` as for ``deploykit.load``;
            the fields of :class:`deploykit.runtime.serve.core.options.ServeOptions` and of
            :class:`deploykit.runtime.cluster.scaling.Scaling`.

    Raises:
        UsageError: one of them is unknown or out of range.
    """
    from deploykit.facade import load
    from deploykit.runtime.cluster.scaling import Scaling
    from deploykit.runtime.cluster.serving import application
    from deploykit.runtime.serve.core.options import ServeOptions

    kinds: dict[type[Any], set[str]] = {kind: {each.name for each in fields(kind)} for kind in (ServeOptions, Scaling)}
    known = {"models", "device", "threads", "verify"}.union(*kinds.values())
    unknown = sorted(set(given) - known)
    if unknown:
        raise UsageError(f"there is no argument {unknown[0]!r}: there are {', '.join(sorted(known))}")
    options, scaling = (
        kind(**{name: value for name, value in given.items() if name in names}) for kind, names in kinds.items()
    )
    compute = {"device": given.get("device"), "threads": given.get("threads") or scaling.cpus}
    opened = partial(load, verify=bool(given.get("verify")), max_pixels=options.max_pixels, **compute)
    return application(given["models"], opened, options, scaling)


def run_server(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    from deploykit.runtime.cluster.on_ray import LOCAL, Resources, connected
    from deploykit.runtime.cluster.serving import serving
    from deploykit.runtime.files import existing_file

    options, scaling = server_flags().fill(args), _scaling(args)
    given = {**vars(options), **vars(scaling), **compute_of(args), "models": _models(args), "verify": args.verify}
    for word in given["models"]:
        existing_file(word.rpartition("=")[2], "a model")  # told here and not after many tries in replicas
    resources = Resources(scaling.max_replicas, scaling.cpus, scaling.gpus)
    with connected(args.address or LOCAL, resources), serving(build(given), options) as address:
        aside(f"serving at {address}; Ctrl-C ends it")
        while True:
            time.sleep(1)  # Windows notices Ctrl-C only between two of them


def print_manifest(args: argparse.Namespace) -> int:
    """Print the RayService."""
    from deploykit.runtime.cluster.kuberay import rayservice_text
    from deploykit.runtime.package.models import packaged_models
    from deploykit.runtime.package.server import model_places, service_name

    if args.image is None:
        raise UsageError("name the image with deploykit, Ray and the models with --image")
    models = packaged_models(_words(args))
    options = server_flags()
    typed = {flag.field: flag.value(args) for flag in options.groups["serve"] if flag.key in args}
    for name in ("host", "port", "token_file"):
        if name in typed:
            raise UsageError(f"--{name.replace('_', '-')} is for deploykit cluster serve: the manifest has its own")
    device = {"device": args.device} if "device" in args and args.device else {}
    places = [f"{name}={place}" for name, place in model_places(models, "/models").items()]
    arguments = {"models": places, **device, **typed}
    name = service_name(args.name or models[0].name)
    print(rayservice_text(name, args.image, BUILD, arguments, _scaling(args), memory=args.memory), end="")
    return 0


def _scaling(args: argparse.Namespace) -> Scaling:
    least = getattr(args, "min_replicas", 1)
    most = getattr(args, "max_replicas", least)
    return scaling_flags().fill(args, cpus=args.cpus, gpus=args.gpus, max_replicas=most)


def _words(args: argparse.Namespace) -> list[str]:
    return [model_of(args), *args.more]


def _models(args: argparse.Namespace) -> list[str]:
    """Return the models, with absolute paths, because Ray's workers run elsewhere."""
    found = []
    for word in _words(args):
        name, equals, path = word.rpartition("=")
        found.append(f"{name}{equals}{Path(path).expanduser().absolute()}")
    return found
