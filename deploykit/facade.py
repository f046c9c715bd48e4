"""The ways in: :func:`load` for images and results, :func:`evaluate` for numbers, :func:`open_session` for tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from deploykit.errors import UsageError, import_extra
from deploykit.progress import SILENT, Progress
from deploykit.spec import ModelSpec

if TYPE_CHECKING:
    from deploykit.models.load_options import LoadOptions
    from deploykit.runtime.evaluate.compare import Comparison
    from deploykit.runtime.evaluate.report import DetectionEvaluation, Evaluation, ImageEvaluation
    from deploykit.runtime.options import ComputeKeywords, EvalKeywords, PredictKeywords
    from deploykit.runtime.predict.predictor import Predictor
    from deploykit.runtime.results.base import ImageResult
    from deploykit.runtime.results.dense import Classification, Features, LabelMap, RestoredImage, RestoredRaw
    from deploykit.runtime.results.detection import Result
    from deploykit.runtime.session import Session

__all__ = ["evaluate", "evaluate_against", "load", "open_session"]

SpecGiven = ModelSpec | str | os.PathLike[str] | None
Place = str | os.PathLike[str]


@overload
def load(
    path: Place,
    *,
    task: Literal["detect", "instances", "keypoints", "oriented"],
    spec: SpecGiven = None,
    backend: str = "auto",
    preprocessing: str = "default",
    loading: LoadOptions | None = None,
    verify: bool = False,
    **options: Unpack[PredictKeywords],
) -> Predictor[Result]: ...
@overload
def load(
    path: Place,
    *,
    task: Literal["classify"],
    spec: SpecGiven = None,
    backend: str = "auto",
    preprocessing: str = "default",
    loading: LoadOptions | None = None,
    verify: bool = False,
    **options: Unpack[PredictKeywords],
) -> Predictor[Classification]: ...
@overload
def load(
    path: Place,
    *,
    task: Literal["segment"],
    spec: SpecGiven = None,
    backend: str = "auto",
    preprocessing: str = "default",
    loading: LoadOptions | None = None,
    verify: bool = False,
    **options: Unpack[PredictKeywords],
) -> Predictor[LabelMap]: ...
@overload
def load(
    path: Place,
    *,
    task: Literal["restore"],
    spec: SpecGiven = None,
    backend: str = "auto",
    preprocessing: str = "default",
    loading: LoadOptions | None = None,
    verify: bool = False,
    **options: Unpack[PredictKeywords],
) -> Predictor[RestoredImage | RestoredRaw]: ...
@overload
def load(
    path: Place,
    *,
    task: Literal["features"],
    spec: SpecGiven = None,
    backend: str = "auto",
    preprocessing: str = "default",
    loading: LoadOptions | None = None,
    verify: bool = False,
    **options: Unpack[PredictKeywords],
) -> Predictor[Features]: ...
@overload
def load(
    path: Place,
    *,
    task: str | None = None,
    spec: SpecGiven = None,
    backend: str = "auto",
    preprocessing: str = "default",
    loading: LoadOptions | None = None,
    verify: bool = False,
    **options: Unpack[PredictKeywords],
) -> Predictor[ImageResult]: ...
def load(
    path: Place,
    *,
    task: str | None = None,
    spec: SpecGiven = None,
    backend: str = "auto",
    preprocessing: str = "default",
    loading: LoadOptions | None = None,
    verify: bool = False,
    **options: Unpack[PredictKeywords],
) -> Predictor[Any]:
    """Open a model and everything around it.

    What an image's result is follows from the model's task: a :class:`deploykit.Result` of detectors, else one of
    :mod:`deploykit.runtime.results.dense`. A type checker knows it where ``task`` is given; without it, a result is
    what all have in common, a :class:`deploykit.ImageResult`.

    Args:
        path: an exported model (``.onnx``), or a checkpoint (``.pt .pth .pkl .safetensors``), which needs torch.
        task: what the model must do; None: whatever it does.
        spec: for a model that does not carry its own: a :class:`ModelSpec`, or a JSON file that holds one.
        backend: ``auto``, or a name from :data:`deploykit.runtime.session.BACKENDS`.
        preprocessing: of a checkpoint whose model was published with two ways to prepare images: ``legacy`` for the
            weights of YOLOX's release 0.0.1, and of a classifier of the ultralytics package before 8.1 whose file does
            not tell. An exported model has its own in its spec.
        loading: how a checkpoint is loaded: which of its entries is taken.
        verify: take an exported model only if it is the file that was verified, by the hash in its parity report or its
            record (:mod:`deploykit.runtime.verified`); the whole file is read for that.
        options: ``conf``, ``iou``, ``max_det``, ``top``, ``tile``, ``overlap``, ``batch``, ...: the fields of
            :class:`deploykit.runtime.options.PredictOptions`, and ``device`` and ``threads``: those of
            :class:`deploykit.runtime.compute.ComputeOptions`, with their defaults.

    Raises:
        NotFoundError, ArtefactError, BackendError, CheckpointError: the model is missing or cannot be used.
        SpecError: it carries no spec and none is given, or the spec does not fit it.
        UsageError: it is of another task, or an option is of another task.
    """
    from deploykit.runtime.backends.ort_providers import CudaOptions
    from deploykit.runtime.model_spec import session_spec
    from deploykit.runtime.options import PredictOptions
    from deploykit.runtime.pipeline.workers import plan_workers
    from deploykit.runtime.predict.predictor import Predictor
    from deploykit.runtime.spec_file import read_spec

    compute, others = _split(options, "load", PredictOptions)
    asked, given = PredictOptions(**others), read_spec(spec)
    if asked.workers is not None:
        workers, compute = plan_workers(path, asked.workers, compute, backend=backend)
        asked = replace(asked, workers=workers)
    session = open_session(
        path, backend=backend, preprocessing=preprocessing, loading=loading, verify=verify, **compute
    )
    try:
        if asked.time_limit is not None:  # a file without a spec may be run to draft one
            session.limit_time(asked.time_limit)
        chosen = given or session_spec(session, os.fspath(path))
        if task not in (None, chosen.task):
            raise UsageError(f"a model for the task {task!r} was asked for, {os.fspath(path)} is for {chosen.task!r}")
        make = Predictor
        if CudaOptions.from_environment().stages and getattr(session, "runs", None) is not None:
            from deploykit.runtime.predict.on_gpu import predictor_on_gpu as make  # type: ignore[assignment]  # no class
        made: Predictor[Any] = make(session, chosen, asked, name=os.fspath(path))
    except BaseException:
        session.close()
        raise
    how = {"spec": given, "backend": backend, "preprocessing": preprocessing, "loading": loading, "verify": verify}
    made.reopen = partial(load, Path(path).absolute(), task=task, **how, **options)
    return made


@overload
def evaluate(
    model: Place,
    data: Place,
    *,
    task: Literal["detect", "instances", "keypoints"],
    images: Place | None = None,
    spec: SpecGiven = None,
    backend: str = "auto",
    preprocessing: str = "default",
    loading: LoadOptions | None = None,
    verify: bool = False,
    progress: Progress = SILENT,
    **options: Unpack[EvalKeywords],
) -> DetectionEvaluation: ...
@overload
def evaluate(
    model: Place,
    data: Place,
    *,
    task: Literal["classify", "segment", "restore"],
    images: Place | None = None,
    spec: SpecGiven = None,
    backend: str = "auto",
    preprocessing: str = "default",
    loading: LoadOptions | None = None,
    verify: bool = False,
    progress: Progress = SILENT,
    **options: Unpack[EvalKeywords],
) -> ImageEvaluation: ...
@overload
def evaluate(
    model: Place,
    data: Place,
    *,
    task: str | None = None,
    images: Place | None = None,
    spec: SpecGiven = None,
    backend: str = "auto",
    preprocessing: str = "default",
    loading: LoadOptions | None = None,
    verify: bool = False,
    progress: Progress = SILENT,
    **options: Unpack[EvalKeywords],
) -> Evaluation: ...
def evaluate(
    model: Place,
    data: Place,
    *,
    task: str | None = None,
    images: Place | None = None,
    spec: SpecGiven = None,
    backend: str = "auto",
    preprocessing: str = "default",
    loading: LoadOptions | None = None,
    verify: bool = False,
    progress: Progress = SILENT,
    **options: Unpack[EvalKeywords],
) -> Evaluation:
    """Run a model on images whose truth is known, as ``predict`` runs it, and score what it says.

    Detections are scored by COCO's protocol. There every image is put on the whole canvas of the spec's size, whatever
    kind of model it is, so that the numbers of a checkpoint and of its exports can be compared. docs/evaluation.md says
    what each number means.

    Args:
        model: an exported model (``.onnx``, ``.trt``), or a checkpoint, which needs torch.
        data: of detectors annotations in COCO's JSON format, or a YOLO data set (``data.yaml``); ``classify``: a folder
            with a folder of images for each class, named as the class or by its number, or with such folders for
            ``train`` and ``val``; ``segment``: a folder of label maps (one channel, or a palette; 255 is ignored);
            ``restore``: of targets.
        task: what is scored, where a model does more than one thing: ``detect``, ``instances`` (AP of masks) or
            ``keypoints``; None: the spec's task.
        images: the folder with the images that the annotations list; of ``segment`` and ``restore`` the folder of
            images, whose truth has the same name but for the suffix; ``classify`` has none.
        spec: for a model that does not carry its own.
        backend: as for :func:`open_session`.
        preprocessing: as for :func:`load`; or ``upstream``: as in the original's own evaluation (docs/evaluation.md).
        loading, verify: as for :func:`load`.
        progress: hears the steps ``loading``, ``evaluating`` and ``scoring``, and the share of the images that is done.
        options: ``conf``, ``iou``, ``max_det``, ``limit``, ``batch``, ...: the fields of
            :class:`deploykit.runtime.options.EvalOptions`, and ``device`` and ``threads`` as for :func:`load`.

    Raises:
        NotFoundError: the model, the truth, the folder or listed images are missing.
        DataError: the truth cannot be read, or fits neither the model nor the images.
        UsageError: a task that the model cannot do, or an option that it cannot take.
        MissingDependencyError: the library of the metrics is not installed.
    """
    from deploykit.runtime.evaluate.evaluate import evaluate_session
    from deploykit.runtime.model_spec import session_spec
    from deploykit.runtime.options import EvalOptions
    from deploykit.runtime.pipeline.workers import plan_workers
    from deploykit.runtime.spec_file import read_spec

    given, upstream = read_spec(spec), preprocessing == "upstream"
    compute, others = _split(options, "evaluate", EvalOptions)
    chosen = EvalOptions(task=task, upstream=upstream, **others)
    progress.step("loading")
    workers, compute = plan_workers(model, chosen.workers, compute, backend=backend)
    chosen = replace(chosen, workers=workers)
    way = "default" if upstream else preprocessing
    with open_session(model, backend=backend, preprocessing=way, loading=loading, verify=verify, **compute) as session:
        if chosen.time_limit is not None:  # a file without a spec may be run to draft one
            session.limit_time(chosen.time_limit)
        own = given or session_spec(session, os.fspath(model))
        return evaluate_session(session, own, data, images, chosen, progress)


def evaluate_against(
    model: Place,
    reference: Place,
    data: Place,
    *,
    bootstrap: int | None = None,
    loading: LoadOptions | None = None,
    verify: bool = False,
    progress: Progress = SILENT,
    **options: Any,
) -> Comparison:
    """Evaluate two models on the same images in the same way, and tell what the first loses against the second.

    Args:
        model: an exported model or a checkpoint.
        reference: another one of the same classes: the checkpoint, or its export in a higher precision.
        data: see :func:`evaluate`.
        bootstrap: draws for the intervals of the differences of detectors (docs/evaluation.md); None: 1000; 0: none.
        loading: how those of the two that are checkpoints are loaded.
        verify: take those of the two that are exported only if they are the files that were verified.
        progress: hears both evaluations, the one after the other.
        options: further arguments of :func:`evaluate`, for both.

    Raises:
        UsageError: the two cannot be compared. Else what :func:`evaluate` raises.
    """
    from deploykit.runtime.evaluate.compare import compared
    from deploykit.runtime.session import for_checkpoints, is_checkpoint

    ways = for_checkpoints((model, reference), loading)
    if verify and all(map(is_checkpoint, (model, reference))):
        raise UsageError("--verify is for exports, and both models are checkpoints, which exports are verified against")
    found = [
        evaluate(path, data, loading=way, verify=verify and not is_checkpoint(path), progress=progress, **options)
        for path, way in zip((model, reference), ways, strict=True)
    ]
    return compared(found[0], found[1], samples=bootstrap)


def _split(options: Mapping[str, Any], function: str, kind: type[Any]) -> tuple[ComputeKeywords, dict[str, Any]]:
    """Return the keyword arguments that say what computes, and the others, which are fields of ``kind``.

    Raises:
        TypeError: one is neither.
    """
    compute: ComputeKeywords = {"device": options.get("device"), "threads": options.get("threads")}
    own = {"task", "upstream"}  # arguments of the function itself, or derived from them
    known = [*(field.name for field in fields(kind) if field.name not in own), *compute]
    for name in options:
        if name not in known:
            raise TypeError(f"{function}() has no option {name!r}: its options are {', '.join(known)}")
    return compute, {name: value for name, value in options.items() if name not in compute}


def open_session(
    path: str | os.PathLike[str],
    *,
    backend: str = "auto",
    device: str | int | None = None,
    provider: str | None = None,
    threads: int | None = None,
    preprocessing: str = "default",
    loading: LoadOptions | None = None,
    verify: bool = False,
) -> Session:
    """Load a model as a network of named tensors: no images, no postprocess.

    Args:
        path: an exported model (``.onnx``), or a checkpoint (``.pt .pth .pkl .safetensors``), which needs torch.
        backend: ``auto``, or a name from :data:`deploykit.runtime.session.BACKENDS`. ``torch`` computes an ONNX file
            by the types of its graph (:mod:`deploykit.export.sessions.onnx_in_torch`): the way to see on a CPU what
            fp16 loses, and to run bf16 and fp8 at all.
        device, threads: what computes, and with how many CPU threads: see
            :class:`deploykit.runtime.compute.ComputeOptions`. Torch has one number of threads for the whole process: a
            checkpoint's session sets it for the time of each run, and its runs wait for each other. OpenCV's threads
            are limited for the process where it has a CPU quota or an affinity, or ``DEPLOYKIT_THREADS`` is set.
        provider: the same as ``device``.
        preprocessing, loading, verify: as for :func:`load`; a checkpoint's session says how images are prepared.

    Raises:
        NotFoundError, ArtefactError, BackendError, CheckpointError: the model is missing or cannot be used.
        MissingDependencyError: a checkpoint without torch, or an ONNX file without onnxruntime.
    """
    from deploykit.runtime import session
    from deploykit.runtime.compute import ComputeOptions, either, limit_opencv
    from deploykit.runtime.files import existing_file, is_folder

    compute = ComputeOptions(either(device, provider), threads)
    limit_opencv()
    if session.is_checkpoint(path):
        if backend not in ("auto", "torch"):
            raise UsageError(f"{path} is a checkpoint and runs in torch: the backend {backend} is for exports")
        if verify:
            raise UsageError(f"{path} is a checkpoint, which exports are verified against: --verify is for exports")
        file = Path(path) if is_folder(Path(path)) else existing_file(path, "a checkpoint")
        import_extra("torch", "export")
        from deploykit.export.sessions.torch_module import open_torch_session

        return open_torch_session(
            file, threads=threads, device=compute.provider, preprocessing=preprocessing, loading=loading
        )[0]
    if preprocessing != "default":
        raise UsageError(f"{path} says in its spec how images are prepared: preprocessing is for checkpoints")
    if loading is not None:
        raise UsageError(f"{path} is no checkpoint: how one is loaded ({loading}) is not asked of it")
    if verify:
        from deploykit.runtime.verified import check_verified

        check_verified(existing_file(path, "a model"))
    if backend == "torch" and Path(path).suffix.lower() == ".onnx":
        if compute.provider not in ("auto", "cpu"):
            raise UsageError(f"the backend torch computes an ONNX file on the CPU, not on {compute.provider}")
        import_extra("torch", "export")
        from deploykit.export.sessions.onnx_in_torch import open_onnx_in_torch

        return open_onnx_in_torch(existing_file(path, "a model"), threads=threads)
    return session.open_session(path, backend=backend, device=compute.provider, threads=threads)
