"""``deploykit package``: files for servers around exported models."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.cli._display import print_json
from deploykit.cli._options import Flag, Flags

if TYPE_CHECKING:
    from deploykit.runtime.package.models import PackagedModel
    from deploykit.runtime.package.options import TritonOptions

EXAMPLES = (
    ("deploykit package best.onnx --triton repository", "a model repository: images in, JSON and arrays out"),
    ("deploykit package best.onnx --docker image", "Dockerfiles for CPU and GPU, a compose file, the model"),
    ("deploykit package best.onnx --kserve best.yaml --image registry.example/best:1", "an InferenceService"),
    ("deploykit package best.onnx --systemd deploykit.service", "a service of one machine"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="exported models, each as FILE or NAME=FILE (name: that of the file)"
    )
    target = parser.add_argument_group("what is written").add_mutually_exclusive_group(required=True)
    target.add_argument("--triton", type=Path, metavar="DIR", help="a model repository for Triton")
    target.add_argument("--docker", type=Path, metavar="DIR", help="a folder in which an image of the server is built")
    target.add_argument("--kserve", type=Path, metavar="FILE", help="an InferenceService for KServe (YAML)")
    target.add_argument("--systemd", type=Path, metavar="FILE", help="a unit for systemd (.service)")
    triton_flags().add(parser)
    places = parser.add_argument_group("where the server runs")
    places.add_argument("--name", metavar="NAME", help="of the image or the service (default: that of the first model)")
    places.add_argument(
        "--image", metavar="REFERENCE", help="--kserve: the image that --docker describes, in a registry"
    )
    places.add_argument(
        "--storage-uri", metavar="URI", help="--kserve: have Triton serve the repository of --triton that lies here"
    )
    places.add_argument("--host", metavar="HOST", help="--systemd: the address to listen on (default 127.0.0.1)")
    places.add_argument(
        "--executable",
        metavar="PROGRAM",
        help="--systemd: deploykit on that machine (default /opt/deploykit/bin/deploykit)",
    )
    places.add_argument(
        "--models-at", metavar="PLACE", help="--systemd: the folder of NAME/FILE there (default /srv/deploykit)"
    )
    others = parser.add_argument_group("others")
    others.add_argument("--spec", metavar="FILE", help="the spec of models that do not carry their own (JSON)")
    others.add_argument("--force", action="store_true", help="replace what exists")
    others.add_argument("--json", action="store_true", help="print what was written as one JSON document")


ONLY = {
    "--instances": ("triton",),
    "--workers": ("triton",),
    "--name": ("docker", "kserve"),
    "--image": ("kserve",),
    "--storage-uri": ("kserve",),
    "--host": ("systemd",),
    "--executable": ("systemd",),
    "--models-at": ("systemd",),
    "--spec": ("triton",),
}
"""Option -> the targets that it is for; the others are for all."""


def triton_flags() -> Flags[TritonOptions]:
    """Return the options that fill :class:`deploykit.runtime.package.options.TritonOptions`."""
    from deploykit.runtime.package.options import TritonOptions

    return Flags(
        TritonOptions,
        {
            "the server": (
                Flag("--device", "device", "what runs the network", choices=("auto", "cpu", "cuda")),
                Flag("--max-batch", "max_batch", "images in one run of a network with a dynamic batch", "N", int),
                Flag("--batch-window", "batch_window", "how long an image waits for others to run with", "MS", float),
                Flag("--workers", "workers", "--triton: processes for each step around the network", "N", int),
                Flag("--instances", "instances", "--triton: copies of the network that run at the same time", "N", int),
            )
        },
    )


def run(args: argparse.Namespace) -> int:
    """Write the files, and say which."""
    from deploykit.runtime.package.models import packaged_models

    target = next(name for name in WRITERS if getattr(args, name) is not None)
    _check(args, target)
    models = packaged_models(args.models)
    written = WRITERS[target](args, models)
    if args.json:
        print_json({"written": written, "models": {model.name: model.file for model in models}})
    else:
        print("\n".join(map(str, written)))
    return 0


def _check(args: argparse.Namespace, target: str) -> None:
    """Check that the options are for this target.

    Raises:
        UsageError: one is for others.
    """
    from deploykit.errors import UsageError

    for option, targets in ONLY.items():
        value = getattr(args, option.removeprefix("--").replace("-", "_"), None)
        if target not in targets and value is not None:
            raise UsageError(f"{option} is for {' and '.join(f'--{name}' for name in targets)}, not for --{target}")


def _triton(args: argparse.Namespace, models: Sequence[PackagedModel]) -> list[Path]:
    from deploykit.runtime.package.models import network_of
    from deploykit.runtime.package.triton import repository_files
    from deploykit.runtime.package.writing import Content, write_tree

    options = triton_flags().fill(args)
    files: dict[str, Content] = {}
    for model in models:
        files |= repository_files(model, network_of(model, args.spec), options)
    return write_tree(args.triton.expanduser(), files, replace=args.force)


def _docker(args: argparse.Namespace, models: Sequence[PackagedModel]) -> list[Path]:
    from deploykit.runtime.package.docker import docker_files
    from deploykit.runtime.package.writing import write_tree

    files = docker_files(models, _name(args, models), _serve_arguments(args))
    return write_tree(args.docker.expanduser(), files, replace=args.force)


def _kserve(args: argparse.Namespace, models: Sequence[PackagedModel]) -> list[Path]:
    from deploykit.runtime.package.kserve import kserve_text

    text = kserve_text(
        models,
        _name(args, models),
        image=args.image,
        storage_uri=args.storage_uri,
        device=getattr(args, "device", None),
        given=_serve_arguments(args),
    )
    return _written(args, args.kserve, text)


def _systemd(args: argparse.Namespace, models: Sequence[PackagedModel]) -> list[Path]:
    from deploykit.runtime.package.systemd import systemd_text

    text = systemd_text(
        models,
        executable=args.executable or "/opt/deploykit/bin/deploykit",
        folder=args.models_at or "/srv/deploykit",
        host=args.host or "127.0.0.1",
        device=getattr(args, "device", None),
        given=_serve_arguments(args),
    )
    return _written(args, args.systemd, text)


WRITERS = {"triton": _triton, "docker": _docker, "kserve": _kserve, "systemd": _systemd}


def _written(args: argparse.Namespace, file: Path, text: str) -> list[Path]:
    from deploykit.runtime.package.writing import write_file

    write_file(file.expanduser(), text, replace=args.force)
    return [file]


def _name(args: argparse.Namespace, models: Sequence[PackagedModel]) -> str:
    from deploykit.runtime.package.server import service_name

    return service_name(args.name or models[0].name)


def _serve_arguments(args: argparse.Namespace) -> list[str]:
    """Return the options of ``deploykit serve`` among those that were typed."""
    triton_flags().fill(args)  # checks the numbers
    typed = {"--device": "device", "--max-batch": "max_batch", "--batch-window": "batch_window"}
    return [word for option, key in typed.items() if hasattr(args, key) for word in (option, str(getattr(args, key)))]
