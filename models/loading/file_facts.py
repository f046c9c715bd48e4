"""What a training script wrote beside the weights: its arguments, hyperparameters and configuration, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from deploykit.errors import UsageError
from deploykit.models.checkpoint.reader import Checkpoint

__all__ = ["architecture", "chosen", "count_told", "told"]

PLACES = ("args", "hyper_parameters", "hparams", "config", "cfg", "model_args", "model_kwargs", "model_config")
INNER = ("model", "model_args", "model_kwargs", "init_args", "pretrained_cfg")
"""Entries of a file that hold arguments, and those within them."""


def told(checkpoint: Checkpoint, *names: str) -> tuple[Any, str] | None:
    """The first value that the file has under one of the names, and how messages call it, ``args.num_heads``.

    None: it has none; a value None counts as none. Values are plain, and of any type.
    """
    for where, table in _tables(checkpoint.metadata):
        for name in names:
            if table.get(name) is not None:
                return table[name], f"{where}{name}"
    return None


def _tables(metadata: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "", metadata
    for place in (*PLACES, *INNER[1:]):
        table = metadata.get(place)
        if isinstance(table, Mapping):
            yield f"{place}.", table
            for inner in INNER:
                if isinstance(table.get(inner), Mapping):
                    yield f"{place}.{inner}.", table[inner]


def count_told(checkpoint: Checkpoint, *names: str) -> tuple[int, str] | None:
    """As :func:`told`, for a whole number of at least 1; anything else under these names does not count."""
    for name in names:
        found = told(checkpoint, name)
        if found is None or isinstance(found[0], bool):
            continue
        text = str(found[0])
        if text.isascii() and text.isdecimal() and int(text[:9]) > 0:
            return int(text[:9]), found[1]
    return None


def architecture(checkpoint: Checkpoint) -> tuple[str, str] | None:
    """The name of the network that the file gives, in lower case with underscores, and where it gives it."""
    for name in ("arch", "architecture", "model_name", "model"):
        found = told(checkpoint, name)
        if found is not None and isinstance(found[0], str) and found[0]:
            return found[0].partition(".")[0].lower().replace("-", "_"), found[1]
    return None


def chosen(checkpoint: Checkpoint, option: str, asked: Any, found: tuple[Any, str] | None) -> Any:
    """What the user asked for with ``option``, else what the file told; None: neither.

    Raises:
        UsageError: they differ.
    """
    if asked is None or found is None:
        return asked if found is None else found[0]
    if asked != found[0]:
        raise UsageError(
            f"--{option} {asked} contradicts {checkpoint.path}, whose {found[1]} says {found[0]}: leave --{option} out"
        )
    return asked
