"""The registry: models by name and from checkpoints; the name of a builder is the name of its model."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Protocol

from torch import nn

from deploykit.errors import CheckpointError, NotFoundError, UnknownLayerError, UsageError
from deploykit.models.checkpoint.prefixes import parts_of
from deploykit.models.checkpoint.reader import Checkpoint, read_checkpoint
from deploykit.models.load_options import LoadOptions
from deploykit.models.loading.file_facts import architecture
from deploykit.models.loading.images import OF_IMAGES, is_of_images, with_images_of_file
from deploykit.models.signatures import described_by, signature_of
from deploykit.progress import SILENT, Progress
from deploykit.spec import InputSpec, ModelSpec, Source

LOG = logging.getLogger(__name__)

NAMES = (
    "cmt.model", "cmt.flyegle", "crossformer.model", "dynopool.model", "fcn.model", "kapao", "nafnet", "resnet",
    "ultralytics.model", "unet.model", "vit", "vitdet.vit_mask_rcnn", "vitdet.model", "yolov3", "yolov5",
    "yolov6.model", "yolov7", "yolox.model",
)  # fmt: skip
FAMILIES = tuple(f"deploykit.models.families.{name}" for name in NAMES)
"""The family modules, in the order in which they are asked whether a checkpoint is theirs."""

DEFAULT = "default"
"""The name of the preprocessing that a model's spec has by itself."""

BUILD_OPTIONS = ("heads", "score", "head", "pool", "activation", "head_activation")
"""The options of loading that decide how a network is built, so that its family must read them."""

Rewrite = Callable[[nn.Module, str], nn.Module]
"""A network and an argument, which may be empty, to another network with the same weights."""


@dataclass(frozen=True)
class ReferenceModel:
    """A PyTorch model with everything that is known about it.

    ``module`` is in eval mode, float32 and not fused. ``spec.input.size`` is the size the model was published for.
    ``notes`` are sentences for the user about what was decided while it was read. ``preprocessings`` are other ways in
    which images were prepared for some of its published weights, by name: see :func:`with_preprocessing`.
    ``rewrites`` are other networks for the same weights, by name: see :func:`with_rewrite`. ``fixed_size_reason``: what
    an export computes from the size of the images, so that it is for one size; empty: an export may be for any size.
    ``choices``: the options of :data:`BUILD_OPTIONS` that its family reads. ``images_known``: how images are prepared
    follows from the project and its file, so that nothing of it is assumed.
    What no tensor told and was therefore assumed is in ``spec.assumptions``; see :meth:`assuming`.
    """

    name: str
    family: str
    module: nn.Module
    spec: ModelSpec
    notes: tuple[str, ...] = ()
    preprocessings: Mapping[str, InputSpec] = field(default_factory=dict)
    rewrites: Mapping[str, Rewrite] = field(default_factory=dict)
    fixed_size_reason: str = ""
    choices: tuple[str, ...] = ()
    images_known: bool = False

    @property
    def stride(self) -> int:
        """Both sides of the input are multiples of this many pixels."""
        return self.spec.input.fit.stride

    @property
    def all_notes(self) -> tuple[str, ...]:
        """The notes, and what was assumed."""
        return (*self.notes, *self.spec.assumption_notes)

    def assuming(self, *sentences: str) -> ReferenceModel:
        """The same model, of which this is assumed too: ``"6 heads, as the published ViT-S has: no tensor tells"``."""
        return replace(self, spec=replace(self.spec, assumptions=(*self.spec.assumptions, *sentences)))

    @property
    def parameters(self) -> int:
        """How many numbers training changes, batch norms not folded."""
        return sum(p.numel() for p in self.module.parameters())


class Builder(Protocol):
    """A registered variant, for example ``yolov7_w6_pose``."""

    __name__: str

    def __call__(self, *, num_classes: int | None = None) -> ReferenceModel: ...


_BUILDERS: dict[str, Builder] = {}


def register_model(builder: Builder) -> Builder:
    """Make ``builder`` buildable by its own name; the name is the only key there is."""
    if builder.__name__ in _BUILDERS:
        raise ValueError(f"model {builder.__name__!r} is registered twice")
    _BUILDERS[builder.__name__] = builder
    return builder


def register_variants(
    module: str, names: Iterable[str], build: Callable[[str, int | None], ReferenceModel], about: Callable[[str], str]
) -> None:
    """Register one builder for each variant of a family.

    Args:
        module: ``__name__`` of the family's module.
        names: of the variants, with underscores.
        build: a variant's name and a number of classes (None: as published) to the model.
        about: a variant's name to the docstring of its builder.
    """
    for name in names:
        builder = _named_builder(name, build)
        builder.__module__, builder.__doc__ = module, about(name)
        register_model(builder)


def _named_builder(name: str, build: Callable[[str, int | None], ReferenceModel]) -> Builder:
    def builder(*, num_classes: int | None = None) -> ReferenceModel:
        return build(name, num_classes)

    builder.__name__ = builder.__qualname__ = name
    return builder


def list_models() -> list[str]:
    """The names of all models that can be built, as they are typed: ``yolov7-w6-pose``."""
    _load_families()
    return sorted(name.replace("_", "-") for name in _BUILDERS)


def create_model(name: str, *, num_classes: int | None = None) -> ReferenceModel:
    """Build a registered model with torch's default weights.

    Args:
        name: one of :func:`list_models`; underscores are accepted.
        num_classes: None: as published.

    Raises:
        NotFoundError: there is no model of that name.
        UsageError: ``num_classes`` is less than 1.
    """
    if num_classes is not None and num_classes < 1:
        raise UsageError(f"a model has at least 1 class, got {num_classes}")
    return builder_of(name)(num_classes=num_classes)


def builder_of(name: str) -> Builder:
    """The function that builds a registered model.

    Raises:
        NotFoundError: there is no model of that name.
    """
    _load_families()
    builder = _BUILDERS.get(name.replace("-", "_"))
    if builder is None:
        typed = name.replace("_", "-").lower()
        begun = [each for each in list_models() if len(typed) > 2 and each.startswith(typed)]
        close = begun or difflib.get_close_matches(typed, list_models(), n=1)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(list_models())}"
        raise NotFoundError(f"there is no model {name!r}: {hint}")
    return builder


def load_model(
    weights: str | Path,
    progress: Progress = SILENT,
    *,
    preprocessing: str = DEFAULT,
    rewrite: str = "",
    loading: LoadOptions | None = None,
) -> ReferenceModel:
    """Read a checkpoint without executing it, and build the model that it is of.

    ``progress`` hears the steps ``reading`` and ``building``. ``preprocessing``: see :func:`with_preprocessing`;
    ``rewrite``: see :func:`with_rewrite`; ``loading``: None: as the file leaves it.

    Raises:
        CheckpointError: not a checkpoint, or of no model that deploykit knows.
        UsageError: the model has no preprocessing or rewrite of that name, or the file no such entry.
    """
    options = loading or LoadOptions()
    given = [f"--{name}" for name in OF_IMAGES if getattr(options, name) is not None]
    if preprocessing != DEFAULT and given:
        raise UsageError(f"--preprocessing {preprocessing} prepares images in its own way: leave {' '.join(given)} out")
    progress.step("reading")
    checkpoint = read_checkpoint(weights, entry=options.entry)
    progress.step("building")
    return with_rewrite(with_preprocessing(model_from_checkpoint(checkpoint, options), preprocessing), rewrite)


def model_from_checkpoint(checkpoint: Checkpoint, loading: LoadOptions | None = None) -> ReferenceModel:
    """Build the model that a checkpoint is of; ``loading``: what the user says of what no tensor tells.

    Raises:
        CheckpointError: no family knows it; UnknownLayerError, WeightsMismatchError: nearly.
        UsageError: the model leaves nothing open there, or the file says otherwise.
    """
    checkpoint = replace(checkpoint, loading=loading or LoadOptions())
    try:
        model = _recognised(checkpoint)
    except UnknownLayerError as e:
        what = described_by(checkpoint.yaml or {}, checkpoint.modules[0].kind if checkpoint.modules else "")
        if not what:
            raise
        raise UnknownLayerError(f"{_not_built(checkpoint, f'{what}, by the layers of its description')} ({e})") from e
    if model is None:
        _refuse_known(checkpoint)
        model = _recognised_part(checkpoint)
    if model is not None:
        return model
    first = ", ".join(list(checkpoint.state_dict)[:3]) or "none"
    named = architecture(checkpoint)
    raise CheckpointError(
        f"{checkpoint.path} is a checkpoint of a model that deploykit does not know"
        f"{f', a {named[0]} by its {named[1]}' if named else ''}: {len(checkpoint.state_dict)} "
        f"tensors ({first}, ...) and no description of its layers; deploykit inspect shows it, deploykit models "
        f"lists what can be loaded{', and a model of timm is named by --timm-model' if named else ''}"
    )


def _refuse_known(checkpoint: Checkpoint) -> None:
    """Name the network that a checkpoint is of, where it is one that deploykit does not build.

    Raises:
        CheckpointError: its tensors are those of such a network.
    """
    signature = signature_of(checkpoint.state_dict)
    if signature is not None:
        raise CheckpointError(_not_built(checkpoint, f"{signature.what}, by its tensors", signature.advice))


def _not_built(checkpoint: Checkpoint, what: str, advice: str = "") -> str:
    advice = advice or "deploykit models lists what can be loaded"
    return f"{checkpoint.path} is of {what}: deploykit does not build it; {advice}"


def _recognised(checkpoint: Checkpoint) -> ReferenceModel | None:
    """The model of the first family that knows the checkpoint."""
    for family in FAMILIES:
        model: ReferenceModel | None = import_module(family).from_checkpoint(checkpoint)
        if model is not None:
            entry = checkpoint.entry or "the file itself"
            LOG.debug("%s is %s, of the family %s; weights in %s", checkpoint.path, model.name, model.family, entry)
            check_choices(model, checkpoint.loading)
            source = Source(model=model.name, sha256=checkpoint.sha256)
            notes = (*checkpoint.notes, *model.notes, *_other_names(checkpoint, model))
            seed = checkpoint.metadata.get("random_seed")
            if seed is not None:  # written by create_checkpoint
                notes = (*notes, f"random weights (seed {seed}): predictions are meaningless")
            spec = with_images_of_file(replace(model.spec, source=source), checkpoint, known=model.images_known)
            return replace(model, spec=spec, notes=notes)
    return None


def _other_names(checkpoint: Checkpoint, model: ReferenceModel) -> tuple[str, ...]:
    """What to say where the file names another number of classes than the model has, and its family does not say it."""
    names, classes = checkpoint.names or (), model.spec.output.trained_classes(model.spec)
    if not names or not classes or set(names) <= set(classes) or any(n.startswith("it names ") for n in model.notes):
        return ()
    if len(names) == len(classes):
        return ()
    return (f"it names {len(names):,} classes and has {len(classes):,}: its names are not used",)


def _recognised_part(checkpoint: Checkpoint) -> ReferenceModel | None:
    """The model inside of another module: all of the tensors have its prefix, but for those of training.

    Raises:
        CheckpointError: there are other tensors beside it.
    """
    for part in parts_of(checkpoint):
        if not part.others:
            model = _recognised(part.checkpoint)
            if model is not None:
                return model
            _refuse_known(part.checkpoint)
            continue
        try:
            known = _recognised(part.checkpoint) is not None
        except CheckpointError:
            known = True
        if known:
            raise part.refusal()
    return None


def check_choices(model: ReferenceModel, loading: LoadOptions) -> None:
    """Check that a network can be built as asked.

    Raises:
        UsageError: it is built in one way only.
    """
    for name in BUILD_OPTIONS:
        if getattr(loading, name) is not None and name not in model.choices:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} has no meaning for {model.name}: it leaves nothing open there")


def with_preprocessing(model: ReferenceModel, name: str) -> ReferenceModel:
    """The same model for weights whose images are prepared otherwise; no tensor tells, so the user must.

    Raises:
        UsageError: the model has no preprocessing of that name.
    """
    if name == DEFAULT:
        return model
    canvas = model.preprocessings.get(name)
    if canvas is None:
        known = ", ".join((DEFAULT, *model.preprocessings))
        raise UsageError(f"{model.name} has no preprocessing {name!r}; it has {known}")
    note = f"images are prepared as {name} weights want it (--preprocessing {name})"
    settled = tuple(text for text in model.spec.assumptions if not is_of_images(text))
    return replace(model, spec=replace(model.spec, input=canvas, assumptions=settled), notes=(*model.notes, note))


def with_rewrite(model: ReferenceModel, name: str) -> ReferenceModel:
    """The same weights in another form of the network, ``tlc``, or with its argument ``tlc:192``; empty: as it is.

    Raises:
        UsageError: the model has no rewrite of that name, or the rewrite refuses its argument.
    """
    if not name:
        return model
    kind, _, argument = name.partition(":")
    rewrite = model.rewrites.get(kind)
    if rewrite is None:
        known = f"it has {', '.join(model.rewrites)}" if model.rewrites else "it has none"
        raise UsageError(f"{model.name} has no rewrite {kind!r}; {known}")
    note = f"rewritten as {name} (--rewrite)"
    settled = tuple(text for text in model.spec.assumptions if f"--rewrite {kind}" not in text)
    model = replace(model, spec=replace(model.spec, assumptions=settled))
    return replace(model, module=rewrite(model.module, argument).eval(), notes=(*model.notes, note))


def _load_families() -> None:
    for family in FAMILIES:
        import_module(family)
