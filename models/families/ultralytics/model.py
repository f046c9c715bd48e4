"""YOLOv8, YOLO11, YOLO26, YOLO12, YOLOv10, YOLOv9, and YOLOv5 and YOLOv3 without anchors, for all of their tasks.

They are the networks of the ultralytics package (AGPL-3.0, and so are their weights). Facts from the published model
descriptions; the code is ours. State dicts of the originals load unchanged. A checkpoint of any release is built from
its own description, its tensors and its pickled modules; where these contradict one another, the tensors and the
modules hold, because releases read one description in different ways.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.families.ultralytics.as_saved import (
    attributes_as_saved,
    check_head,
    folded_as_saved,
    pooling_as_saved,
    without_training_parts,
)
from deploykit.models.families.ultralytics.assumed import untold_of
from deploykit.models.families.ultralytics.build import build_graph
from deploykit.models.families.ultralytics.description import HEADS, Description, task_of_rows
from deploykit.models.families.ultralytics.recognise import described_by_tensors, published_name
from deploykit.models.families.ultralytics.relatives import refuse_relatives
from deploykit.models.families.ultralytics.spec import reference_of
from deploykit.models.families.ultralytics.variants import description_of, variants
from deploykit.models.loading.weights import load_weights
from deploykit.models.registry import ReferenceModel, register_variants
from deploykit.models.yolo_graph.as_saved import check_sources, folded_note, ignore_added_buffers
from deploykit.models.yolo_graph.family import has_layers
from deploykit.models.yolo_graph.from_checkpoint import apply_recorded
from deploykit.models.yolo_graph.layer_graph import strides_of

PACKAGE = "ultralytics."
"""What the names of the pickled classes begin with."""

WEIGHTS_LICENCE = "AGPL-3.0"


def from_checkpoint(checkpoint: Checkpoint) -> ReferenceModel | None:
    """Build the model of a checkpoint of the package; None: it is of another project.

    Raises:
        CheckpointError: it is of the package, and of a network that deploykit does not build.
    """
    if not has_layers(checkpoint):
        return None
    kind = checkpoint.modules[0].kind if checkpoint.modules else ""
    ours = kind.startswith(PACKAGE)
    if not ours and kind:
        return None
    yaml = checkpoint.yaml
    if ours or (yaml and not yaml.get("anchors")):
        refuse_relatives(checkpoint, kind, yaml or {})
    found, left_out = without_training_parts(checkpoint.float32())
    opened: tuple[str, ...] = ()
    if ours or (yaml and not yaml.get("anchors") and task_of_rows(yaml)):
        if not yaml:
            raise CheckpointError(f"{checkpoint.path} is of the ultralytics package ({kind}) and has no description")
        description = Description.from_yaml(yaml)
    else:
        known = None if yaml else described_by_tensors(found, checkpoint.state_dict)
        if known is None:
            return None
        description, opened = known
    model = _model(checkpoint, description, found, left_out)
    return model if checkpoint.modules else model.assuming(*untold_of(model, described=bool(yaml)), *opened)


def _model(
    checkpoint: Checkpoint, description: Description, found: dict[str, torch.Tensor], left_out: tuple[str, ...]
) -> ReferenceModel:
    # On the meta device nothing is allocated, so a description that lies about its sizes costs nothing.
    with torch.device("meta"):
        graph = build_graph(description, found)
    family, name = published_name(description, found, checkpoint)
    records = {module.path: module for module in checkpoint.modules}
    check_head(description, records)
    check_sources(graph, records)
    folded = folded_as_saved(graph, found)
    if attributes_as_saved(graph, records):
        strides_of(graph, description.channels, description.rows)  # for its check that the layers still fit together
    bare = pooling_as_saved(graph, records)
    changes = apply_recorded(graph, checkpoint.modules)
    notes = tuple(f"{change}; its layer description does not say so" for change in changes)
    notes = (*notes, *bare, *left_out, *folded_note(folded), *ignore_added_buffers(graph, found, records))
    load_weights(graph, checkpoint, found, name.replace("_", "-"))
    graph = graph.eval().requires_grad_(False)
    variant = variants().get(name)
    size = _size(checkpoint) or (variant.size if variant else 0)
    return reference_of(graph, description, name, family, size, checkpoint, notes)


def _size(checkpoint: Checkpoint) -> int:
    """The pixels a side that training used, which a file has among its arguments; 0: it does not tell."""
    arguments = checkpoint.metadata.get("train_args")
    side = arguments.get("imgsz") if isinstance(arguments, Mapping) else None
    if isinstance(side, (list, tuple)) and side:
        side = max((n for n in side if type(n) is int), default=0)
    return side if type(side) is int and 32 <= side <= 8192 else 0


def _build(name: str, num_classes: int | None) -> ReferenceModel:
    variant, description = variants()[name], description_of(name, num_classes)
    return reference_of(build_graph(description), description, name, variant.family, variant.size)


def _about(name: str) -> str:
    variant = variants()[name]
    return f"{name.replace('_', '-')} of {variant.family}: {HEADS[variant.description.head]}, {variant.size} px."


register_variants(__name__, variants(), _build, _about)
