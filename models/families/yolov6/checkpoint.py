"""YOLOv6 checkpoints: one name for each tensor whichever version wrote it, what is refused, and the filled network.

The project changed its wrappers between versions: a convolution's weight is ``.conv.weight`` in 0.1 to 0.3 and
``.block.conv.weight`` in 0.4, the pooling's are below ``.sppf`` or ``.cspsppf`` there. The names without wrappers are
those that the network has.
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.families.yolov6.config import REG_MAX, YOLOv6Config, config_from_shapes
from deploykit.models.families.yolov6.network import YOLOv6
from deploykit.models.families.yolov6.rep_vgg import DeployedQARepVGG, QARepVGG
from deploykit.models.loading.weights import load_weights
from deploykit.models.yolo_graph.as_saved import fold_as_saved, folded_note
from deploykit.models.yolo_graph.from_checkpoint import apply_recorded

LANDMARKS = 10  # values beside a box that a face detector of the project's branch yolov6-face predicts

_WRAPPER = re.compile(r"\.(?:block|sppf|cspsppf)(?=\.(?:conv|bn|act|m|cv[1-7])(?:\.|$))")
_ACTIVATION = re.compile(r"\.(?:nonlinearity|relu)$")
_HEAD = re.compile(r"^detect\.(cls_preds|reg_preds)_(?:af|lrtb)\.")
"""What 0.3.0 calls the predictions that are used, beside those that only training uses."""

_TRAINING_ONLY = re.compile(r"detect\.(?:cls_preds_ab|reg_preds_ab|reg_preds_dist)\.")
_DISTILLED = "detect.reg_preds_lrtb."  # where 0.3.0 has these, its ``reg_preds`` are those for distillation

_RELATIVES: tuple[tuple[str, str], ...] = (
    (r"backbone\.(conv_0|lite_effiblock_\d)\.", "a YOLOv6-lite model"),
    (r"detect\.seg_", "a YOLOv6-seg model, which segments"),
    (r"(backbone|neck)\..*\.m\.\d+\.\d+\.conv3\.", "a YOLOv6 model with MBLA blocks"),
    (r"(backbone|neck)\..*\.scale_(conv|1x1)\.", "a YOLOv6 model in hyper-search training, before RepOpt"),
    (r".*_quantizer\.", "a quantized YOLOv6 model"),
    (r"neck\.(low_IFM|high_IFM|Inject_)", "a Gold-YOLO model"),
)
"""What a tensor's name says about a file that is nearly one of ours."""


def plain_name(name: str) -> str:
    """The name of a tensor or a module without the wrappers that some versions put around it."""
    return _HEAD.sub(r"detect.\1.", _WRAPPER.sub("", name))


def is_yolov6(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is of the YOLOv6 project, ours or one of its other models."""
    kinds = (module.kind for module in checkpoint.modules[:1])
    # Other projects have a backbone and a neck too; these names of stages and of the lite ones are its own.
    own = ("backbone.ERBlock_", "backbone.lite_effiblock_")
    return any(kind.startswith("yolov6.") for kind in kinds) or any(
        key.startswith(own) for key in checkpoint.state_dict
    )


def refuse_relatives(checkpoint: Checkpoint) -> None:
    """Say what a normalised checkpoint is that looks like one of ours, before its layers are looked at.

    Raises:
        CheckpointError: it is another model of the project.
    """
    what = next((what for pattern, what in _RELATIVES if _first(checkpoint, pattern)), "")
    box = checkpoint.state_dict.get("detect.reg_preds.0.weight")
    if box is not None and box.ndim and box.shape[0] - LANDMARKS in (4, 4 * (REG_MAX + 1)):
        what = "a YOLOv6-face model, whose head gives five landmarks beside each box"
    if what:
        raise CheckpointError(
            f"{checkpoint.path} is {what}: deploykit does not have it; deploykit models lists what can be loaded"
        )


def _first(checkpoint: Checkpoint, pattern: str) -> str | None:
    compiled = re.compile(pattern)
    return next((key for key in checkpoint.state_dict if compiled.match(key)), None)


def normalised(checkpoint: Checkpoint) -> tuple[Checkpoint, tuple[str, ...]]:
    """The checkpoint with plain names and without what only training uses, and what was left out.

    Raises:
        CheckpointError: two tensors have one name but for the wrappers.
    """
    distilled = any(key.startswith(_DISTILLED) for key in checkpoint.state_dict)
    kept = {
        key: tensor
        for key, tensor in checkpoint.state_dict.items()
        if not _TRAINING_ONLY.match(key) and not (distilled and key.startswith("detect.reg_preds."))
    }
    state = {plain_name(key): tensor for key, tensor in kept.items()}
    if len(state) < len(kept):
        raise CheckpointError(
            f"{checkpoint.path} has tensors under the names of two versions of YOLOv6: it was made of two files"
        )
    modules = tuple(replace(m, path=_ACTIVATION.sub(".act", plain_name(m.path))) for m in checkpoint.modules)
    notes: tuple[str, ...] = ()
    if len(kept) < len(checkpoint.state_dict):
        notes = ("a training checkpoint: its auxiliary heads are dropped",)
    return replace(checkpoint, state_dict=state, modules=modules), notes


def described(checkpoint: Checkpoint) -> YOLOv6Config:
    """What the tensors of a normalised checkpoint say, and its pickled modules beside them.

    Raises:
        CheckpointError: they are not those of a YOLOv6 detector.
    """
    try:
        config = config_from_shapes({key: tuple(t.shape) for key, t in checkpoint.state_dict.items()})
    except CheckpointError as e:
        raise CheckpointError(
            f"{checkpoint.path} is a YOLOv6 model, but {e}: it is of a changed network (deploykit inspect shows it)"
        ) from e
    kinds = {module.path: module.kind for module in checkpoint.modules}
    if kinds.get("backbone.stem", "").endswith("QARepVGGBlockV2"):
        config = replace(config, mean=True)
    if kinds.get("backbone.stem.act", "").endswith(".SiLU"):
        config = replace(config, activation="silu")
    return config


def filled(checkpoint: Checkpoint, config: YOLOv6Config, name: str) -> tuple[YOLOv6, tuple[str, ...]]:
    """Build the network of ``config`` and fill it with a normalised checkpoint's weights, in float32 and eval mode.

    Raises:
        WeightsMismatchError: a tensor is missing, is left over or has another shape or type.
        CheckpointError: a pickled module is not what the tensors say.
    """
    with torch.device("meta"):
        network = YOLOv6(config)
    _check_strides(checkpoint, network)
    folded = fold_as_saved(network, checkpoint.state_dict)
    for path, module in list(network.named_modules()):
        if isinstance(module, QARepVGG) and f"{path}.rbr_reparam.weight" in checkpoint.state_dict:
            network.set_submodule(path, DeployedQARepVGG(module))
            folded += 1
    notes = (*apply_recorded(network, checkpoint.modules), *folded_note(folded))
    load_weights(network, checkpoint, checkpoint.float32(), name)
    return network.eval().requires_grad_(False), notes


def _check_strides(checkpoint: Checkpoint, network: YOLOv6) -> None:
    of_head = next((module for module in checkpoint.modules if module.path == "detect"), None)
    found = of_head.attributes.get("stride") if of_head else None
    if found is not None and found != list(network.head.stride):
        raise CheckpointError(
            f"{checkpoint.path}: its head has the strides {str(found)[:40]}, where a YOLOv6 model of "
            f"{network.head.num_levels} levels has {list(network.head.stride)}; it was changed and cannot be rebuilt"
        )
