"""Classifiers of timm (huggingface/pytorch-image-models, Apache-2.0) by their names there; timm is an extra.

timm itself tells the preprocessing and the number of classes. A file of weights is read by deploykit's reader, never
by timm: nothing in it is executed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deploykit.errors import (
    CheckpointError,
    FetchError,
    MissingDependencyError,
    NotFoundError,
    UsageError,
    import_extra,
)
from deploykit.models.checkpoint.prefixes import parts_of
from deploykit.models.checkpoint.reader import Checkpoint, read_checkpoint
from deploykit.models.class_names import class_names
from deploykit.models.load_options import LoadOptions
from deploykit.models.loading.images import with_images_of, with_images_of_file
from deploykit.models.loading.weights import load_weights
from deploykit.models.registry import ReferenceModel, check_choices
from deploykit.models.timm_options import TimmOptions
from deploykit.progress import SILENT, Progress
from deploykit.spec import DenseOutput, Fit, InputSpec, ModelSpec, Source

__all__ = ["PREFIX", "TimmModel", "list_timm", "load_timm", "name_in"]

FAMILY = "timm"
PREFIX = "timm:"
"""Prefix of ``--weights`` that means a model of timm instead of a file."""
FADED = 1e-2
"""A parameter whose values are all at most this large counts as off: zeros, and layer scales of a new network."""


class TimmModel(nn.Module):
    """``(B, C, H, W)`` to logits ``(B, classes)``: a network of timm, which knows how to be made cheaper.

    ``image_shape``: channels, height and width of the images that it is published for.
    """

    def __init__(self, network: nn.Module, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.network, self.image_shape = network, image_shape

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def fuse(self, path: str) -> nn.Module:
        """With merged branches, where timm can merge them; the export compares the result with the original."""
        merged: nn.Module = import_extra("timm.utils.model", "timm").reparameterize_model(self.network, inplace=False)
        return TimmModel(merged, self.image_shape).requires_grad_(False)

    @torch.no_grad()
    def random_weights(self, gain: float) -> None:
        """Random weights of which every one counts; ``gain`` of the batch norms.

        As timm makes them, heads, the last norms of residual branches and the scales of layers are zero or almost: the
        logits would hardly depend on the image, and to verify an export would say nothing. Batch norms get the
        statistics of noise, so that the deepest network neither fades out nor magnifies its rounding errors.
        """
        for parameter in self.network.parameters():
            if parameter.numel() > 1 and bool(parameter.abs().max() <= FADED):
                nn.init.normal_(parameter, std=0.1)
        for module in self.network.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            elif isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        norms = [m for m in self.network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            if norm.affine:
                norm.weight.mul_(torch.empty_like(norm.weight).uniform_(0.8 * gain, 1.2 * gain))
            norm.train().momentum = 1.0  # the statistics become those of this batch
        if norms:
            self.network(_noise(self.image_shape))
        for norm in norms:
            norm.eval().momentum = 0.1
            assert norm.running_var is not None
            norm.running_var.clamp_(min=float(norm.running_var.mean()) / 10)  # a faint channel is not magnified


def _noise(image_shape: tuple[int, int, int]) -> Tensor:
    """Eight images from smooth to rough, so that they differ."""
    channels, *size = image_shape
    blobs = nn.functional.interpolate(torch.randn(8, channels, 4, 4), size, mode="bilinear")
    share = torch.linspace(0, 1, 8).view(8, 1, 1, 1)
    return (1 - share) * blobs + share * torch.randn(8, *image_shape)


def name_in(weights: str | Path) -> str | None:
    """The model that ``timm:NAME`` names; None: it is the name of a file."""
    text = str(weights)
    return text.removeprefix(PREFIX) if text.startswith(PREFIX) else None


def list_timm(pattern: str = "*") -> list[str]:
    """The names of timm's models that match a pattern as of a shell, ``densenet*``.

    Raises:
        MissingDependencyError: timm is not installed, or does not load.
    """
    return [str(name) for name in _timm().list_models(pattern)]


def load_timm(
    weights: str | Path,
    options: TimmOptions | None = None,
    progress: Progress = SILENT,
    *,
    loading: LoadOptions | None = None,
) -> ReferenceModel:
    """A model of timm with random or published weights (``timm:NAME``), or with those of a file, loaded as asked.

    Raises:
        MissingDependencyError: timm is not installed, or does not load. NotFoundError: it has no model of that name.
        UsageError: the options do not go together. FetchError: the published weights did not arrive.
        CheckpointError: the file is not a checkpoint; WeightsMismatchError: its weights do not fit.
    """
    options = options or TimmOptions()
    name = name_in(weights)
    if (name is None) == (options.model is None):
        raise UsageError("a model of timm is --weights timm:NAME, or a file of weights and --timm-model NAME; not both")
    for what, number in (("class", options.num_classes), ("channel", options.in_chans)):
        if number is not None and number < 1:
            raise UsageError(f"a model of timm has at least 1 {what}, got {number}")
    if name is None:
        if options.pretrained:
            raise UsageError("--timm-pretrained downloads weights, and a file of weights is given: leave one out")
        progress.step("reading")
        checkpoint = read_checkpoint(weights, entry=loading.entry if loading else "")
        progress.step("building")
        return _of_file(replace(checkpoint, loading=loading or LoadOptions()), options)
    if loading is not None and loading.entry:
        raise UsageError(f"{weights} is no file: how a checkpoint is loaded ({loading}) is not asked of it")
    progress.step("building")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _create(name, options.pretrained, _sizes(options))
        model = _reference(name, network)
        if not options.pretrained:
            assert isinstance(model.module, TimmModel)
            model.module.random_weights(1.0)
    random = () if options.pretrained else ("random weights (seed 0): predictions are meaningless",)
    check_choices(model, loading or LoadOptions())
    spec = with_images_of(model.spec, loading or LoadOptions())
    return replace(model, spec=spec, notes=(*random, *model.notes))


def _sizes(options: TimmOptions) -> dict[str, int]:
    given = {"num_classes": options.num_classes, "in_chans": options.in_chans}
    return {key: value for key, value in given.items() if value is not None}


def _timm() -> ModuleType:
    try:
        timm = import_extra("timm", "timm")
        import_extra("timm.utils.model", "timm")
    except MissingDependencyError:
        raise
    except Exception as e:  # torchvision's binary may not fit this torch: RuntimeError, AttributeError, OSError
        raise MissingDependencyError(
            f"timm is installed and does not load ({str(e)[:200]}): it needs a torchvision that was built for torch "
            f"{torch.__version__}; pip install --force-reinstall torchvision from where torch came from"
        ) from e
    return timm


def _create(name: str, pretrained: bool, sizes: Mapping[str, int]) -> nn.Module:
    timm = _timm()
    plain = name.partition(".")[0]
    if not timm.is_model(plain):
        close = difflib.get_close_matches(plain, timm.list_models(), 3)
        hint = f"did you mean {' or '.join(close)}?" if close else "deploykit models --timm 'PATTERN' lists them"
        raise NotFoundError(f"timm {timm.__version__} has no model {name!r}: {hint}")
    try:
        network: nn.Module = timm.create_model(name, pretrained=pretrained, exportable=True, **sizes)
    except Exception as e:  # whatever timm raises: it runs the model's own code
        cause = f"{type(e).__name__}: {str(e)[:300]}"
        if pretrained:
            raise FetchError(f"the weights of {name} did not arrive from timm's hub ({cause}); give a file with "
                             f"--weights FILE --timm-model {name}") from e  # fmt: skip
        raise UsageError(
            f"timm does not build {name} like this ({cause}); leave --num-classes or --in-chans out"
        ) from e
    return network.eval().requires_grad_(False)


def _of_file(checkpoint: Checkpoint, options: TimmOptions) -> ReferenceModel:
    assert options.model is not None
    with torch.device("meta"):
        outline = _outline(options.model)
    checkpoint = _inside(checkpoint, outline)
    config = getattr(outline, "pretrained_cfg", {})
    sizes = _sizes(options)
    for key, layer, axis in (("num_classes", "classifier", 0), ("in_chans", "first_conv", 1)):
        named = config.get(layer)
        tensor = checkpoint.state_dict.get(f"{named}.weight") if isinstance(named, str) else None
        if key not in sizes and tensor is not None and tensor.dim() > axis:
            sizes[key] = int(tensor.shape[axis])
    if any(not 0 < size <= 65_536 for size in sizes.values()):
        raise CheckpointError(f"{checkpoint.path}: {sizes} do not fit a {options.model}: it is of another network")
    network = _create(options.model, False, sizes)
    load_weights(network, checkpoint, checkpoint.float32(), options.model)
    model = _reference(options.model, network.requires_grad_(False))
    source = Source(model=model.name, sha256=checkpoint.sha256)
    check_choices(model, checkpoint.loading)
    names = class_names(len(model.spec.classes), checkpoint.names)
    spec = with_images_of_file(replace(model.spec, source=source, classes=names), checkpoint, known=True)
    return replace(model, spec=spec, notes=(*checkpoint.notes, *model.notes))


def _inside(checkpoint: Checkpoint, outline: nn.Module) -> Checkpoint:
    """The checkpoint, or the part of it that has the network's names, where none of its own names is one of them.

    Raises:
        CheckpointError: other tensors are beside that part.
    """
    own = outline.state_dict().keys()
    if own & checkpoint.state_dict.keys():
        return checkpoint
    for part in parts_of(checkpoint):
        if own & part.checkpoint.state_dict.keys():
            if part.others:
                raise part.refusal()
            return part.checkpoint
    return checkpoint


def _outline(name: str) -> nn.Module:
    try:
        return _create(name, False, {})
    except UsageError:  # a model that cannot be made without its numbers
        with torch.device("cpu"):
            return _create(name, False, {})


def _reference(name: str, network: nn.Module) -> ReferenceModel:
    count = getattr(network, "num_classes", None)
    if not isinstance(count, int) or count < 1:
        raise UsageError(f"{name} of timm gives features and no classes; give it some with --num-classes")
    config = import_extra("timm.data", "timm").resolve_model_data_config(network)
    facts: Mapping[str, Any] = getattr(network, "pretrained_cfg", {})
    canvas, notes = _canvas(config, int(getattr(network, "in_chans", 0) or _channels(network, config)))
    licence = facts.get("license")
    if licence:
        notes.append(f"the weights that timm publishes for it are under {licence}")
    spec = ModelSpec("classify", canvas, DenseOutput(name="logits"), class_names(count), source=Source(model=name))
    return ReferenceModel(name, FAMILY, TimmModel(network, (canvas.channels, *canvas.size)).eval(), spec, tuple(notes))


def _channels(network: nn.Module, config: Mapping[str, Any]) -> int:
    """Channels of the image: those of the first convolution, which need not be of the published number."""
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    published = int(config["input_size"][0])
    return first.in_channels if first is not None and first.in_channels < 16 and published < 16 else published


def _canvas(config: Mapping[str, Any], channels: int) -> tuple[InputSpec, list[str]]:
    """The preprocessing of a model as timm resolved it, with what of it has no equal here."""
    _, height, width = config["input_size"]
    notes = []
    mean, std = (tuple(float(v) for v in config[key]) for key in ("mean", "std"))
    if len(mean) != channels:
        mean, std = ((sum(values) / len(values),) * channels for values in (mean, std))
        notes.append(f"mean and deviation of the {channels} channels are the averages of the published three")
    mode = config.get("crop_mode", "center")
    resample = resample_of(str(config["interpolation"]))
    if mode == "squash":
        fit = Fit(kind="resize", stride=1, resample=resample)
    else:
        fit = Fit(kind="crop", stride=1, crop_share=min(float(config["crop_pct"]), 1.0), resample=resample)
    if mode == "border":
        notes.append("timm adds a border where an image is not square; deploykit takes its middle instead")
    canvas = InputSpec(size=(int(height), int(width)), channels=channels, mean=mean, std=std, fit=fit)
    return canvas, notes


def resample_of(interpolation: str) -> Literal["bilinear", "bicubic", "lanczos"]:
    """How images are scaled, by Pillow's filters, from timm's name of it; bilinear where it is another (random)."""
    known: dict[str, Literal["bilinear", "bicubic", "lanczos"]] = {"bicubic": "bicubic", "lanczos": "lanczos"}
    return known.get(interpolation, "bilinear")
