"""``deploykit cluster``: one model on many processes or machines."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.cli._cluster_serve import add_server_arguments, print_manifest, run_server, scaling_flags, server_flags
from deploykit.cli._compute import compute_flags, compute_of
from deploykit.cli._display import note, print_json, printable, shown_progress
from deploykit.cli._loading import add_verify, loading_flags, loading_of
from deploykit.cli._model import add_model, add_sources, model_of, sources_of
from deploykit.cli._options import Flag, Flags
from deploykit.cli._predict_files import choice_flags, max_pixels_flag, threshold_flags, time_limit_flag
from deploykit.errors import ImageError, UsageError, import_extra

if TYPE_CHECKING:
    from deploykit.progress import Progress
    from deploykit.runtime.cluster.plan import Plan
    from deploykit.runtime.cluster.run import Manifest
    from deploykit.runtime.cluster.work import Work
    from deploykit.runtime.options import PredictOptions
    from deploykit.runtime.sources.frames import Images

EXAMPLES = (
    ("deploykit cluster run best.onnx images/ --out results", "a process per core; again after a stop, it goes on"),
    ("deploykit cluster check results", "every image has exactly one row"),
    ("deploykit cluster serve best.onnx --max-replicas 4", "the server of deploykit serve, in as many as are needed"),
    ("deploykit cluster manifest best.onnx --image registry.example/best:1", "a RayService for KubeRay"),
)

PER_PART = 250

OF_RUN = {
    "--recursive": False, "--out": None, "--format": "jsonl", "--join": False, "--per-part": PER_PART,
    "--workers": None, "--spec": None, "--preprocessing": "default",
}  # fmt: skip
"""Options of ``run`` alone, with their defaults."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "action",
        choices=("run", "check", "serve", "manifest"),
        help="run: a model on many images; check: the folder of a run; serve: models on Ray Serve; "
        "manifest: print what Kubernetes (KubeRay) needs for that",
    )
    add_model(parser, "the model (.onnx, .trt), or a checkpoint; check: the folder")
    add_sources(
        parser,
        "run: images, folders, patterns ('*.jpg', '**'), lists of files (.txt); serve, manifest: more models, each as "
        "FILE or NAME=FILE",
    )
    parser.add_argument("--recursive", action="store_true", help="take the images of sub-folders too")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the folder of the results")
    parser.add_argument(
        "--format", choices=("jsonl", "parquet"), default="jsonl", help="of the results (default jsonl)"
    )
    parser.add_argument("--join", action="store_true", help="all rows in one file too: results.jsonl or .parquet")
    parser.add_argument(
        "--per-part", type=int, default=PER_PART, metavar="N",
        help=f"images in a part, which is computed and written as a whole (default {PER_PART})",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    group = parser.add_argument_group("workers")
    group.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="a cluster of Ray: auto, its head, or local (default: processes, no Ray)",
    )
    group.add_argument("--workers", type=int, metavar="N", help="how many (default: as many as there is room for)")
    group.add_argument("--cpus", type=int, default=1, metavar="N", help="cores of each (default 1)")
    group.add_argument(
        "--gpus", type=float, default=0.0, metavar="X", help="with --address: GPUs of each; a fraction shares one"
    )
    _predict_flags().add(parser)
    compute_flags().add(parser)
    parser.add_argument("--spec", metavar="FILE", help="the spec (JSON) of a model that does not carry its own")
    parser.add_argument("--preprocessing", default="default", metavar="NAME", help="for a checkpoint, as for predict")
    loading_flags().add(parser)
    add_verify(parser)
    add_server_arguments(parser)


def _predict_flags() -> Flags[PredictOptions]:
    """Return the options of a prediction."""
    from deploykit.runtime.options import PredictOptions

    groups = {
        "objects": (*threshold_flags(), *choice_flags()),
        "other": (
            Flag("--top", "top", "classify: report the N best classes (default 5)", "N", int),
            Flag("--batch", "batch", "images per call of the network, for one with a dynamic batch", "N", int),
            max_pixels_flag(),
            time_limit_flag(),
        ),
    }
    return Flags(PredictOptions, groups)


def run(args: argparse.Namespace) -> int:
    """Run, check or serve; return the exit code."""
    args.command = f"cluster {args.action}"  # which messages name
    _check_options(args)
    return {"run": _run, "check": _check, "serve": run_server, "manifest": print_manifest}[args.action](args)


def _check_options(args: argparse.Namespace) -> None:
    """Check that the options are for this action.

    Raises:
        UsageError: one is for others.
    """
    others = {"run": [*server_flags().given(args), *scaling_flags().given(args)]}
    if args.action not in others:
        typed = [name for name, default in OF_RUN.items() if getattr(args, name[2:].replace("-", "_")) != default]
        others[args.action] = [*typed, *_predict_flags().given(args), *loading_flags().given(args)]
    if given := others[args.action]:
        owner = "serve" if args.action == "run" else "run"
        raise UsageError(f"{given[0]} is for deploykit cluster {owner}, not for {args.action}")


def _check(args: argparse.Namespace) -> int:
    from deploykit.errors import NotFoundError
    from deploykit.runtime.cluster.run import check_folder

    folder = Path(model_of(args))
    try:
        manifest = check_folder(folder)
    except OSError as e:
        raise NotFoundError(f"a complete run was expected in {folder}: {e.strerror or e}") from e
    _report(args, manifest, folder, "whole: each image has one row")
    return 0


def _run(args: argparse.Namespace) -> int:
    from deploykit.runtime.cluster.run import complete

    if args.out is None:
        raise UsageError("name the folder of the results with --out DIR")
    for option, given, least in (("--workers", args.workers, 1), ("--cpus", args.cpus, 1), ("--gpus", args.gpus, 0)):
        if given is not None and given < least:
            raise UsageError(f"{option} must be at least {least}, got {given:g}")
    if args.gpus and args.address is None:
        raise UsageError("--gpus says what Ray gives each worker: it needs --address (or choose a GPU with --device)")
    if args.format == "parquet":
        import_extra("pyarrow", "cluster")  # told before anything is planned
    work, began = _work(args), time.perf_counter()
    plan = _planned(args, work)
    try:
        with shown_progress() as progress:
            manifest = _computed(args, plan, work, partial(complete, plan, args.out, args.format), progress)
    except KeyboardInterrupt as e:
        raise type(e)(f"the same command goes on from what {args.out} has") from None
    _report(args, manifest, args.out, f"in {time.perf_counter() - began:.1f} s, {manifest.computed} parts computed")
    return ImageError.exit_code if manifest.failed else 0


def _computed(args: argparse.Namespace, plan: Plan, work: Work, finish: Any, progress: Progress) -> Manifest:
    """Compute what is missing by processes, or by Ray."""
    if args.address is None:
        from deploykit.runtime.cluster.processes import in_processes
        from deploykit.runtime.cores import usable_cores

        workers = args.workers or max(1, usable_cores()[0] // args.cpus)
        found: Manifest = finish(in_processes(work, min(workers, plan.parts)), join=args.join, progress=progress)
        return found
    from deploykit.runtime.cluster.on_ray import Resources, connected, on_ray

    resources = Resources(args.workers, args.cpus, args.gpus)
    progress.step("connecting to Ray")
    with connected(args.address, resources) as ray:
        found = finish(on_ray(work, resources, ray), join=args.join, progress=progress)
    return found


def _work(args: argparse.Namespace) -> Work:
    """Open the model here once, which tells at once what is wrong with it, and return how workers open it."""
    from deploykit.facade import load
    from deploykit.runtime.cluster.work import Work, model_digest
    from deploykit.runtime.results.dense import RestoredImage

    model = Path(model_of(args)).expanduser().absolute()
    compute = compute_of(args)
    options = {**vars(_predict_flags().fill(args)), **compute, "threads": compute["threads"] or args.cpus}
    ways = {"spec": args.spec and str(Path(args.spec).absolute()), "preprocessing": args.preprocessing}
    opened = partial(load, str(model), **ways, loading=loading_of(args), verify=args.verify, **options)
    here = dict(options, device="cpu") if args.gpus and not options["device"] else options  # the head may have no GPU
    with partial(opened, **here)() as predictor:
        if issubclass(predictor.adapter.result_type, RestoredImage):
            raise UsageError("the results of a model that restores are images, which predict --out writes; not rows")
        for text in predictor.notes:
            note(text)
    return Work(opened, str(model), model_digest(model), args.format)


def _planned(args: argparse.Namespace, work: Work) -> Plan:
    """Return the plan: the images, and what their rows depend on."""
    from deploykit.runtime.cluster.plan import Plan, items_of
    from deploykit.runtime.cluster.work import model_digest

    typed = _predict_flags().fill(args)
    loading = loading_of(args)
    options = {
        **{name: getattr(typed, name) for name in ("conf", "iou", "max_det", "agnostic", "top", "max_pixels")},
        "classes": None if typed.classes is None else list(typed.classes),
        "spec": args.spec and model_digest(Path(args.spec)),
        "preprocessing": args.preprocessing,
        **({} if loading is None else dataclasses.asdict(loading)),
    }
    about = {"model": work.digest, "options": options, "format": args.format}
    return Plan(about, items_of(_images(sources_of(args), recursive=args.recursive)), args.per_part)


def _images(words: Sequence[str], *, recursive: bool) -> list[Images]:
    """Open the sources.

    Raises:
        UsageError: one is a video or a live source.
    """
    from deploykit.runtime.sources.frames import Images
    from deploykit.runtime.sources.opening import open_sources

    found = []
    for word in words:
        for source in open_sources(word, recursive=recursive):
            if not isinstance(source, Images):
                raise UsageError(f"cluster run takes images, and {source.name} is a video or a stream: use predict")
            found.append(source)
    return found


def _report(args: argparse.Namespace, manifest: Manifest, folder: Path, ending: str) -> None:
    if args.json:
        print_json(dataclasses.asdict(manifest))
        return
    failed = f", {manifest.failed} of them without a result: their rows say why" * bool(manifest.failed)
    print(printable(f"{folder}: {manifest.images} images in {len(manifest.parts)} parts{failed}; {ending}"))
