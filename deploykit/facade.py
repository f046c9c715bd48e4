"""The ways in: :func:`load` for images and results, :func:`open_session` for tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from deploykit.errors import UsageError, require
from deploykit.spec import CHECKPOINT_SUFFIXES, DenseOutput, ModelSpec

if TYPE_CHECKING:
    from deploykit.runtime.evaluate.compare import AccuracyComparison
    from deploykit.runtime.evaluate.dense import DenseEvaluation
    from deploykit.runtime.evaluate.report import Evaluation
    from deploykit.runtime.predict.dense import DensePredictor
    from deploykit.runtime.predict.detector import Predictor
    from deploykit.runtime.session import Session

__all__ = ["evaluate", "evaluate_against", "evaluate_dense", "load", "open_session", "predictor_of"]


@overload
def load(
    path: str | os.PathLike[str],
    *,
    task: Literal["classify", "segment", "restore", "features"],
    spec: ModelSpec | str | os.PathLike[str] | None = None,
    backend: str = "auto",
    top: int | None = None,
    tile: int | tuple[int, int] | None = None,
    overlap: int | None = None,
    batch: int | None = None,
    preprocessing: str = "default",
) -> DensePredictor: ...
@overload
def load(
    path: str | os.PathLike[str],
    *,
    task: Literal["detect", "instances", "keypoints"] | None = None,
    spec: ModelSpec | str | os.PathLike[str] | None = None,
    backend: str = "auto",
    conf: float | None = None,
    iou: float | None = None,
    max_det: int | None = None,
    top: int | None = None,
    tile: int | tuple[int, int] | None = None,
    overlap: int | None = None,
    batch: int | None = None,
    preprocessing: str = "default",
) -> Predictor: ...
def load(
    path: str | os.PathLike[str],
    *,
    spec: ModelSpec | str | os.PathLike[str] | None = None,
    backend: str = "auto",
    conf: float | None = None,
    iou: float | None = None,
    max_det: int | None = None,
    task: str | None = None,
    top: int | None = None,
    tile: int | tuple[int, int] | None = None,
    overlap: int | None = None,
    batch: int | None = None,
    preprocessing: str = "default",
) -> Predictor | DensePredictor:
    """Open a model and everything around it.

    What comes back follows from the model's task: a :class:`deploykit.Predictor` of detectors, a
    :class:`deploykit.DensePredictor` of the tasks classify, segment and restore. A type checker takes it for the
    former unless ``task`` is given.

    Args:
        path: an exported model (``.onnx``), or a checkpoint (``.pt .pth .pkl .safetensors``), which needs torch.
        task: what the model must do; None: whatever it does.
        spec: for a model that does not carry its own: a :class:`ModelSpec`, or a JSON file that holds one.
        backend: ``auto``, or a name from :data:`deploykit.runtime.session.BACKENDS`.
        conf: keep scores above this; None: the model's own threshold.
        iou: suppress overlaps above this; None: the model's own threshold.
        max_det: at most so many objects an image; None: the model's own number.
        top: so many classes of an image; None: 5.
        tile, overlap: images to restore are cut into tiles; see :class:`deploykit.DensePredictor`.
        batch: images in one call of a network with a dynamic batch; None: the model's preference.
        preprocessing: of a checkpoint whose model was published with two ways to prepare images: ``legacy`` for the
            weights of YOLOX's release 0.0.1. An exported model has its own in its spec.

    Raises:
        NotFoundError, ArtefactError, BackendError, CheckpointError: the model is missing or cannot be used.
        SpecError: it carries no spec and none is given, or the spec does not fit it.
        UsageError: it is of another task, or an option is of another task.
    """
    from deploykit.runtime.session import spec_of
    from deploykit.runtime.spec_file import read_spec

    given = read_spec(spec)
    session = open_session(path, backend=backend, preprocessing=preprocessing)
    try:
        chosen = given or spec_of(session, os.fspath(path))
        if task not in (None, chosen.task):
            raise UsageError(f"a model for the task {task!r} was asked for, {os.fspath(path)} is for {chosen.task!r}")
        return predictor_of(
            session, chosen, conf=conf, iou=iou, max_det=max_det, top=top, tile=tile, overlap=overlap, batch=batch
        )
    except BaseException:
        session.close()
        raise


def predictor_of(
    session: Session,
    spec: ModelSpec,
    *,
    conf: float | None = None,
    iou: float | None = None,
    max_det: int | None = None,
    top: int | None = None,
    tile: int | tuple[int, int] | None = None,
    overlap: int | None = None,
    batch: int | None = None,
) -> Predictor | DensePredictor:
    """The predictor for a network that is open already; see :func:`load` for the arguments.

    Raises:
        SpecError: the spec does not fit the network. UsageError: an option is of another task.
    """
    from deploykit.runtime.predict.dense import DensePredictor
    from deploykit.runtime.predict.detector import Predictor

    limits = {"conf": conf, "iou": iou, "max_det": max_det}
    of_images = {"top": top, "tile": tile, "overlap": overlap}
    dense = isinstance(spec.output, DenseOutput)
    wrong = [name for name, value in (limits if dense else of_images).items() if value is not None]
    if wrong:
        raise UsageError(f"{', '.join(wrong)}: not for a model of the task {spec.task}")
    if dense:
        return DensePredictor(session, spec, top=top, tile=tile, overlap=overlap, batch=batch)
    return Predictor(session, spec, conf=conf, iou=iou, max_det=max_det, batch=batch)


def evaluate(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str],
    task: str | None = None,
    conf: float | None = None,
    iou: float | None = None,
    max_det: int | None = None,
    limit: int | None = None,
    batch: int | None = None,
    img: int | Sequence[int] | None = None,
    rectangles: bool = False,
    allow_missing: bool = False,
    engine: str = "hotcoco",
    spec: ModelSpec | str | os.PathLike[str] | None = None,
    backend: str = "auto",
    preprocessing: str = "default",
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Run a model on annotated images and score what it finds by COCO's protocol.

    Every image is put on the whole canvas of the spec's size, whatever kind of model it is, so that the numbers of
    a checkpoint and of its exports can be compared. docs/evaluation.md says what each number means.

    Args:
        model: an exported model (``.onnx``, ``.trt``), or a checkpoint, which needs torch.
        data: annotations in COCO's JSON format.
        images: the folder that holds the images which they list.
        task: ``detect``, ``instances`` (AP of masks) or ``keypoints``; None: the spec's.
        conf: keep scores above this; None: 0.001, and for a model with NMS inside its own.
        iou: suppress overlaps above this; None: 0.65, or the model's own.
        max_det: at most so many objects an image; None: 300, or the model's own.
        limit: evaluate only the first so many images that are there.
        batch: images in one call of a network with a dynamic batch; None: the spec's preference.
        img: the canvas in pixels, one side or (height, width), of a network with a dynamic shape; None: the spec's.
        rectangles: give such a network each image's own rectangle, as ``load`` does, instead of the whole canvas.
        allow_missing: leave out listed images that are not in the folder, instead of refusing.
        engine: the library of the metrics, ``hotcoco`` or ``pycocotools``.
        spec: for a model that does not carry its own.
        backend: as for :func:`open_session`.
        preprocessing: as for :func:`load`; or ``upstream``: as the original project's own evaluation prepares images,
            which is not how they are prepared in use (docs/evaluation.md).
        on_progress: told after each image how many are done, and of how many.

    Raises:
        NotFoundError: the model, the annotations, the folder or listed images are missing.
        DataError: the annotations cannot be read, or fit neither the model's classes and keypoints nor the images.
        UsageError: a task that the model cannot do, or a threshold that it cannot take.
        MissingDependencyError: the library of the metrics is not installed.
    """
    from deploykit.runtime.evaluate.detection import evaluate_session
    from deploykit.runtime.session import spec_of
    from deploykit.runtime.spec_file import read_spec

    given, upstream = read_spec(spec), preprocessing == "upstream"
    with open_session(model, backend=backend, preprocessing="default" if upstream else preprocessing) as session:
        return evaluate_session(
            session,
            given or spec_of(session, os.fspath(model)),
            data,
            images,
            task=task,
            conf=conf,
            iou=iou,
            max_det=max_det,
            limit=limit,
            batch=batch,
            img=img,
            rectangles=rectangles,
            allow_missing=allow_missing,
            upstream=upstream,
            engine=engine,
            on_progress=on_progress,
        )


def evaluate_dense(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    task: str | None = None,
    limit: int | None = None,
    spec: ModelSpec | str | os.PathLike[str] | None = None,
    backend: str = "auto",
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> DenseEvaluation:
    """Evaluate a network of classification, segmentation or restoration (docs/evaluation.md).

    Args:
        model: an exported model, or a checkpoint.
        data: ``classify``: a folder with a folder of images for each class, named as the class or by its number;
            ``segment``: a folder of label maps (one channel, or a palette; 255 is ignored); ``restore``: of targets.
        images: of ``segment`` and ``restore`` the folder of images; truth and image have the same name but for the
            suffix.
        task: None: the spec's.
        limit: evaluate only the first so many images.
        spec: for a model that does not carry its own.
        backend: as for :func:`open_session`.
        on_progress: told after each image how many are done, and of how many.

    Raises:
        NotFoundError, DataError: the folders, or what belongs together, are missing or do not fit.
        UsageError: a task that the model does not have.
        MissingDependencyError: segmentation without hotcoco.
    """
    from deploykit.runtime.evaluate.dense import evaluate_dense_session
    from deploykit.runtime.session import spec_of
    from deploykit.runtime.spec_file import read_spec

    given = read_spec(spec)
    with open_session(model, backend=backend) as session:
        chosen = given or spec_of(session, os.fspath(model))
        return evaluate_dense_session(session, chosen, data, images, task=task, limit=limit, on_progress=on_progress)


def evaluate_against(
    model: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str],
    bootstrap: int = 1000,
    on_progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> AccuracyComparison:
    """Evaluate two models on the same images in the same way, and tell what the first loses against the second.

    Args:
        model: an exported model or a checkpoint.
        reference: another one of the same classes: the checkpoint, or its export in a higher precision.
        data, images: see :func:`evaluate`.
        bootstrap: draws for the intervals of the differences (docs/evaluation.md); 0: none.
        on_progress: told how many images are done, of how many; those of both models.
        options: further arguments of :func:`evaluate`, for both.

    Raises:
        UsageError: the two cannot be compared. Else what :func:`evaluate` raises.
    """
    from deploykit.runtime.evaluate.compare import compare_evaluations

    found = []
    for i, path in enumerate((model, reference)):

        def tell(done: int, total: int, before: int = i) -> None:
            if on_progress is not None:
                on_progress(before * total + done, 2 * total)

        found.append(evaluate(path, data, images=images, on_progress=tell, **options))
    return compare_evaluations(found[0], found[1], samples=bootstrap)


def open_session(
    path: str | os.PathLike[str],
    *,
    backend: str = "auto",
    provider: str = "auto",
    threads: int | None = None,
    preprocessing: str = "default",
) -> Session:
    """Load a model as a network of named tensors: no images, no postprocess.

    Args:
        path: an exported model (``.onnx``), or a checkpoint (``.pt .pth .pkl .safetensors``), which needs torch.
        backend: ``auto``, or a name from :data:`deploykit.runtime.session.BACKENDS`. ``torch`` computes an ONNX file
            by the types of its graph (:mod:`deploykit.export.sessions.onnx_in_torch`): the way to see on a CPU what
            fp16 loses, and to run bf16 and fp8 at all.
        provider: what computes an exported model: ``auto``, ``cpu``, ``cuda``, or the backend's name of a provider.
        threads: CPU threads within one operator; None: the backend's choice. Torch has one number for the whole
            process: a checkpoint's session sets it for the time of each run, and its runs wait for each other.
        preprocessing: what a checkpoint's session says of how images are prepared; see :func:`load`.

    Raises:
        NotFoundError, ArtefactError, BackendError, CheckpointError: the model is missing or cannot be used.
        MissingDependencyError: a checkpoint without torch, or an ONNX file without onnxruntime.
    """
    if Path(path).suffix.lower() in CHECKPOINT_SUFFIXES:
        if backend not in ("auto", "torch") or provider != "auto":
            raise UsageError(f"{path} is a checkpoint and runs in torch: backend and provider are for exports")
        from deploykit.runtime.files import existing_file
        from deploykit.runtime.session import check_threads

        check_threads(threads)
        file = existing_file(path, "a checkpoint")
        require("torch", "export")
        from deploykit.export.sessions.torch_module import open_torch_session

        return open_torch_session(file, threads=threads, preprocessing=preprocessing)[0]
    if preprocessing != "default":
        raise UsageError(f"{path} says in its spec how images are prepared: preprocessing is for checkpoints")
    if backend == "torch" and Path(path).suffix.lower() == ".onnx":
        from deploykit.runtime.files import existing_file

        require("torch", "export")
        from deploykit.export.sessions.onnx_in_torch import open_onnx_in_torch

        return open_onnx_in_torch(existing_file(path, "a model"), threads=threads)
    from deploykit.runtime import session

    return session.open_session(path, backend=backend, provider=provider, threads=threads)
