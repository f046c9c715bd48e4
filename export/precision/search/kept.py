"""The table of layers that stay in higher precision, and the file that keeps it for other exports."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from deploykit.atomic import write_atomic
from deploykit.errors import UsageError
from deploykit.export.options import KeepAs, PrecisionOptions
from deploykit.runtime.files import exists, format_size
from deploykit.spec.model import Source
from deploykit.strict_json import JsonError, read_json

__all__ = [
    "KeepFile",
    "KeptLayer",
    "keep_file_of",
    "lines_of",
    "read_keep_file",
    "summary_of",
    "with_keep_file",
    "write_keep_file",
    "write_kept",
]

FORMAT = 1


@dataclass(frozen=True)
class KeptLayer:
    """A layer that stays in higher precision.

    Attributes:
        node: the name of its node in the graph.
        layer: its name in the network.
        why: ``tolerance`` or ``accuracy``, which would not hold without it; ``error``, of which it makes much; or
            ``asked``.
        share: its share of the error of the outputs with no layer kept, to first order; None: not measured. A share
            that goes only with several layers is divided among them.
        size: the bytes that it adds to the file.
        time: its share of the network's multiplications, which are computed in higher precision: an estimate of time,
            nothing was timed.
    """

    node: str
    layer: str
    why: str
    share: float | None
    size: int
    time: float

    def __str__(self) -> str:
        share = "" if self.share is None else f", {self.share:.1%} of the error"
        return f"{self.layer}: {self.why}{share}; {format_size(self.size)}, {self.time:.1%} of the multiplications"


@dataclass(frozen=True)
class KeepFile:
    """A chosen set of layers.

    Attributes:
        model: the network's name; ``checkpoint_sha256`` the hash of its weights, empty where it is not known.
        precision: the precision of the others.
        keep_as: that of these layers.
        layers: the layers; empty: none has to stay.
    """

    model: str
    checkpoint_sha256: str
    precision: str
    keep_as: str
    layers: tuple[KeptLayer, ...]

    def nodes_in(self, known: Collection[str], what: str) -> tuple[str, ...]:
        """Return the names of the nodes.

        Raises:
            UsageError: a layer is not among the ``known`` nodes; ``what`` names the file.
        """
        missing = [each for each in self.layers if each.node not in known]
        if missing:
            raise UsageError(
                f"{what} keeps {missing[0].layer!r} ({missing[0].node}), and the network has no such layer"
                f"{f', nor {len(missing) - 1} others of it' if len(missing) > 1 else ''}: it was written for "
                f"{self.model}; choose the layers anew with another --keep-file"
            )
        return tuple(each.node for each in self.layers)


def write_keep_file(path: Path, kept: KeepFile) -> None:
    """Write a chosen set.

    Raises:
        OutputError: the file cannot be written.
    """
    data = {"format": FORMAT, **dataclasses.asdict(kept)}
    write_atomic(path, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode())


def read_keep_file(path: Path, precision: str) -> KeepFile | None:
    """Return a chosen set; None: there is no such file yet.

    Raises:
        UsageError: the file is none of this format, or is for another precision.
    """
    if not exists(path):
        return None
    try:
        data = read_json(path)
    except (OSError, JsonError) as e:
        raise UsageError(f"the file of layers to keep {path} cannot be read: {e}") from e
    try:
        found = _file_of(data)
    except (AttributeError, KeyError, TypeError) as e:
        raise UsageError(
            f"{path} is not a file of layers to keep of format {FORMAT}: {e}; --keep-file writes one if there is none"
        ) from e
    if found.precision != precision:
        raise UsageError(
            f"{path} has the layers to keep of {found.precision}, and the export is in {precision}: give another "
            "--keep-file"
        )
    return found


def keep_file_of(options: PrecisionOptions) -> KeepFile | None:
    """Return the layers that the file of the options chooses; None: it chooses none, or does not exist yet.

    Raises:
        UsageError: the file cannot be used, or layers are named beside it.
    """
    if options.keep_file is None:
        return None
    found = read_keep_file(Path(options.keep_file).expanduser(), options.precision)
    if found is not None and options.nodes_to_exclude != "auto":
        raise UsageError(f"--keep-file {options.keep_file} has the layers to keep already: leave --keep out")
    return found


def with_keep_file(options: PrecisionOptions, nodes: Collection[str]) -> tuple[PrecisionOptions, KeepFile | None]:
    """Return the options with those nodes of a graph that their file chooses, and what that file says.

    Raises:
        UsageError: see :func:`keep_file_of`.
    """
    chosen = keep_file_of(options)
    if chosen is None:
        return options, None
    found = chosen.nodes_in(nodes, str(options.keep_file))
    return replace(options, nodes_to_exclude=found or "none", keep_as=cast(KeepAs, chosen.keep_as)), chosen


def write_kept(options: PrecisionOptions, kept: tuple[KeptLayer, ...], source: Source) -> None:
    """Write the layers that stay to the file of the options, if they name one that does not exist yet.

    Raises:
        OutputError: it cannot be written.
    """
    if options.keep_file is not None and not exists(path := Path(options.keep_file).expanduser()):
        write_keep_file(path, KeepFile(source.model, source.sha256, options.precision, options.keep_as, kept))


def _file_of(data: Any) -> KeepFile:
    if data["format"] != FORMAT:
        raise TypeError(f"its format is {data['format']!r}")
    layers = tuple(_layer_of(each) for each in data["layers"])
    model, checkpoint, precision, keep_as = (
        _typed(data, name, str) for name in ("model", "checkpoint_sha256", "precision", "keep_as")
    )
    return KeepFile(model, checkpoint, precision, keep_as, layers)


def _layer_of(data: Mapping[str, Any]) -> KeptLayer:
    node, layer, why = (_typed(data, name, str) for name in ("node", "layer", "why"))
    share = None if data["share"] is None else float(_typed(data, "share", (int, float)))
    return KeptLayer(node, layer, why, share, _typed(data, "size", int), float(_typed(data, "time", (int, float))))


def _typed(data: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    if not isinstance(data[name], kind) or isinstance(data[name], bool):
        raise TypeError(f"{name} is {data[name]!r}")
    return data[name]


def summary_of(kept: Sequence[KeptLayer]) -> str:
    """Return what layers cost together, for the screen."""
    size, time = sum(layer.size for layer in kept), sum(layer.time for layer in kept)
    return f"{format_size(size)} more, and {time:.1%} of the multiplications, which is an estimate of their time"


def lines_of(kept: Sequence[KeptLayer], most: int = 12) -> list[str]:
    """Return lines for the screen, the largest shares first."""
    order = sorted(kept, key=lambda each: -(each.share or 0.0))
    rest = [f"... and {len(order) - most} more (--json has all)"] if len(order) > most else []
    return [*map(str, order[:most]), *rest]
