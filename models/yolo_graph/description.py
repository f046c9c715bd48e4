"""GraphConfig: rows ``[from, repeats, layer, arguments]`` and the numbers beside them, as a checkpoint says them.

Nothing of a description is evaluated: names and numbers are looked up, and what is out of bounds is refused.
"""

from __future__ import annotations

import ast
import contextlib
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deploykit.errors import CheckpointError
from deploykit.models.yolo_graph.layer_table import KNOWN, activation, unknown_layer

Row = Sequence[Any]
"""``[from, repeats, layer, arguments]``; ``from`` is an index or a list of them, -1 the row before."""

# A hostile description must not keep us busy; the largest real one has 266 rows, 8 sources and 2048 channels.
MAX_ROWS, MAX_LAYERS, MAX_ENTRIES, MAX_CHANNELS = 1000, 1000, 32, 65_536

_NUMBERS = re.compile(r"[-+\d.,eE \[\]()]{1,64}")
"""What a number, or a list of numbers, is written with."""

REFUSALS = (ArithmeticError, AttributeError, IndexError, RuntimeError, TypeError, ValueError)
"""What Python and torch raise for numbers and shapes that make no layer."""


NOT_GIVEN_ACT = ("SPP", "Detect")
"""The layers of edgeai-yolov5 that keep SiLU whatever ``act`` says: its code does not hand it to them."""


@dataclass(frozen=True)
class GraphConfig:
    """What a description says beside its rows. ``anchors``: a flat list ``w, h, ...`` in pixels per level.

    ``activation`` is that of every convolution whose row does not name one, but for those in ``silu_layers``; empty:
    SiLU. ``num_coords``, beside the classes, make the head KaPao's.

    Raises:
        CheckpointError: a number that no model has.
    """

    rows: tuple[Row, ...]
    num_classes: int
    anchors: tuple[tuple[float, ...], ...]
    num_keypoints: int = 0
    depthwise_keypoints: bool = False
    num_coords: int = 0
    depth_multiple: float = 1.0
    width_multiple: float = 1.0
    channels: int = 3
    activation: str = ""
    silu_layers: tuple[str, ...] = ()
    strides: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        if not 1 <= len(self.rows) <= MAX_ROWS:
            raise CheckpointError(f"a model's description has 1 to {MAX_ROWS} layers, this one has {len(self.rows)}")
        for name, least in (("num_classes", 1), ("num_keypoints", 0), ("num_coords", 0), ("channels", 1)):
            value = getattr(self, name)
            if not least <= value <= MAX_CHANNELS:
                raise CheckpointError(
                    f"a model's {name} is {least} to {MAX_CHANNELS}, its description says {reprlib.repr(value)}"
                )
        for name in ("depth_multiple", "width_multiple"):
            value = getattr(self, name)
            if not 0.0 < value <= MAX_ENTRIES:  # a NaN must fail
                raise CheckpointError(
                    f"a model's {name} is over 0 and up to {MAX_ENTRIES}, its description says {value}"
                )
        sizes = {len(level) for level in self.anchors}
        if len(sizes) != 1 or not 1 <= len(self.anchors) <= MAX_ENTRIES or max(sizes) not in range(2, MAX_ENTRIES, 2):
            raise CheckpointError(
                "a model's anchors are a list w, h, w, h, ... per level, all of one length; "
                f"its description says {reprlib.repr(self.anchors)}"
            )

    @staticmethod
    def from_yaml(yaml: Mapping[str, Any]) -> GraphConfig:
        """Read the ``yaml`` dictionary that a YOLOv5/v7 checkpoint carries.

        Raises:
            CheckpointError: a part is missing, of another type or out of range.
        """
        try:
            rows = (*yaml["backbone"], *yaml["head"])
            _check_known(rows)
            return GraphConfig(
                rows=rows,
                num_classes=int(yaml["nc"]),
                anchors=_anchors(yaml["anchors"], rows),
                num_keypoints=int(yaml.get("nkpt") or 0),
                depthwise_keypoints=bool(yaml.get("dw_conv_kpt", False)),
                depth_multiple=float(yaml.get("depth_multiple", 1.0)),
                width_multiple=float(yaml.get("width_multiple", 1.0)),
                channels=int(yaml.get("ch", 3)),
                activation=_activation_name(yaml),
                silu_layers=NOT_GIVEN_ACT if yaml.get("act") and not yaml.get("activation") else (),
            )
        except KeyError as e:
            free = "; models without anchors are YOLOv5u, YOLOv7's branch u6, YOLOv8 and later"
            raise CheckpointError(
                f"the checkpoint's model description has no {e.args[0]!r}: only those of the YOLOv5 and YOLOv7 "
                f"projects are read (backbone, head, nc, anchors){free * (e.args[0] == 'anchors')}"
            ) from e
        except (ArithmeticError, TypeError, ValueError) as e:
            raise CheckpointError(f"the checkpoint's model description cannot be read: {e}") from e


def _anchors(value: Any, rows: Sequence[Row]) -> tuple[tuple[float, ...], ...]:
    """In pixels, per level. A mere number of them says that training found them and that they are in the weights."""
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value < MAX_ENTRIES // 2:
            raise ValueError(f"{reprlib.repr(value)} anchors per level, expected 1 to {MAX_ENTRIES // 2 - 1}")
        sources, *_ = read_row(len(rows) - 1, rows[-1])
        return (tuple(float(i) for i in range(2 * value)),) * len(sources)
    return tuple(tuple(float(a) for a in level) for level in value)


def _activation_name(yaml: Mapping[str, Any]) -> str:
    """YOLOv5 7.0 writes ``activation: nn.LeakyReLU(0.1)``, edgeai-yolov5 ``act: ReLU``."""
    named = yaml.get("activation") or (f"nn.{yaml['act']}()" if yaml.get("act") else "")
    if not isinstance(named, str):
        raise TypeError(f"its activation is {reprlib.repr(named)}, expected a name")
    if named:
        activation(named)
    return named


def _check_known(rows: Sequence[Row]) -> None:
    """Before anything else of a description is looked at, because this tells its reader most."""
    for i, row in enumerate(rows):
        kind = str(row[2]) if isinstance(row, (list, tuple)) and len(row) > 2 else ""
        if kind and kind not in KNOWN:
            raise unknown_layer(i, kind)


def read_row(i: int, row: Row) -> tuple[tuple[int, ...], int, str, list[Any]]:
    """Row ``i``'s sources as absolute indices (-1 is the image), its repeats, layer and arguments.

    Raises:
        CheckpointError: it is not a row, or is fed by a layer that does not come before it.
    """
    try:
        origin, repeats, kind, arguments = row
        used = tuple(s if s >= 0 else i + s for s in ([origin] if isinstance(origin, int) else origin))
        if not used or len(used) > MAX_ENTRIES or not all(isinstance(s, int) and -1 <= s < i for s in used):
            raise ValueError(f"it is fed by {reprlib.repr(origin)}, which is not an earlier layer")
        if not isinstance(kind, str) or not isinstance(arguments, (list, tuple)) or len(arguments) > MAX_ENTRIES:
            raise ValueError(f"expected [from, repeats, layer, arguments] with up to {MAX_ENTRIES} arguments")
        return used, int(repeats), kind, list(arguments)
    except REFUSALS as e:
        raise misfit(i, row, e) from e


def misfit(i: int, row: Row, reason: Exception) -> CheckpointError:
    """The error for a row of which no layer can be made, or that does not fit what feeds it."""
    first_line = str(reason).partition("\n")[0]
    return CheckpointError(
        f"layer {i} of the model's description, {reprlib.repr(row)}, cannot be built: {first_line}; "
        "expected a layer as its project describes one"
    )


def literal(value: Any, names: Mapping[str, Any]) -> Any:
    """What a description's argument means: a number, a short list, or one of a few names and activations.

    ``names`` are those that stand for numbers of the description, such as ``nc``, and what they stand for. The projects
    evaluate the strings among the arguments; here numbers and lists of them are read, and nothing is evaluated.
    """
    if isinstance(value, (list, tuple)):
        if len(value) > MAX_ENTRIES or any(isinstance(v, (list, tuple)) for v in value):
            raise ValueError(f"its argument {reprlib.repr(value)} is neither one value nor a short list")
        return [literal(v, names) for v in value]
    if not isinstance(value, str):
        return value
    named = {"None": None, "True": True, "False": False, **names}
    if value in named:
        return named[value]
    if value.startswith("nn."):
        return activation(value)
    if _NUMBERS.fullmatch(value):
        with contextlib.suppress(SyntaxError, ValueError):
            return literal(ast.literal_eval(value), names)
    return value
