"""Reference values that are kept between exports: of one network on the same images, in fp16, in int8, as an engine.

A file holds the values in float64 under a hash of all that they depend on: every tensor and every attribute of the
network, the inputs, what is compared, the source of deploykit, and the versions of torch and numpy. So options of an
export that change the network or the images change the hash. A network that has an attribute which cannot be told by
its value, or a layer of another package, is not kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.kept_bytes import keep_file
from deploykit.runtime.files import cache_folder
from deploykit.runtime.npz_file import opened_npz
from deploykit.runtime.parity.expected import ParityInputs
from deploykit.spec import ModelSpec
from deploykit.version import __version__

__all__ = ["SWITCH", "keep_values", "kept_values", "key_of"]

SWITCH = "DEPLOYKIT_REFERENCE_CACHE"
"""The environment variable that switches the cache off with ``0``."""

KNOWN = ("deploykit", "torch")  # packages whose layers do the same whenever their version and attributes are the same
ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("models", "export", "runtime")
OWN = frozenset(vars(nn.Module()))  # attributes of every module, which are hashed by their tensors


def key_of(network: nn.Module, spec: ModelSpec, feeds: ParityInputs) -> str | None:
    """Return the hash of all that reference values depend on; None: this network's are not kept, or the cache is off.

    Args:
        network: the module that computes them, in float32.
        spec: of its output, as the values are compared.
        feeds: the inputs.
    """
    if os.environ.get(SWITCH, "").strip() == "0":
        return None
    digest = hashlib.sha256(
        "\n".join((_code(), __version__, torch.__version__, np.__version__, spec.to_json())).encode()
    )
    for name, module in network.named_modules():
        told = _told(module)
        if told is None:
            return None
        digest.update(f"\n{name}: {told}".encode())
    # Under each of its names, because two names may be one tensor.
    tensors = (*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False))
    for name, tensor in tensors:
        _add(digest, name, tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(), tensor)
    for label, image in feeds.images.items():
        _add(digest, label, np.ascontiguousarray(image), image)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, name: str, data: Array, of: Tensor | Array) -> None:
    digest.update(f"\n{name} {of.dtype} {tuple(of.shape)}\n".encode())
    digest.update(data.data)


def _told(module: nn.Module) -> str | None:
    """A module's class and attributes as text; None if they do not tell what it computes."""
    kind = type(module)
    if kind.__module__.partition(".")[0] not in KNOWN or module._forward_hooks or module._forward_pre_hooks:
        return None
    own = {name: value for name, value in vars(module).items() if name not in OWN}
    if "forward" in own or not _plain(own):
        return None
    return f"{kind.__module__}.{kind.__qualname__} {module.extra_repr()} {sorted(own.items())!r}"


def _plain(value: object) -> bool:
    """Whether the text of a value tells all of it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return all(_plain(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, dict):
        return _plain(list(value)) and _plain(list(value.values()))
    if isinstance(value, (tuple, list, set, frozenset)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, bytes, torch.dtype, torch.device))


@cache
def _code() -> str:
    """A hash of the source that computes reference values."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for file in sorted((ROOT / folder).rglob("*.py")):
            digest.update(f"\n{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def kept_values(key: str, feeds: ParityInputs) -> dict[str, Array] | None:
    """Return the kept values by label; None if there are none, or if their file is damaged."""
    path = _place(key)
    try:
        with opened_npz(path) as array:
            values = {label: array(f"values{i}") for i, label in enumerate(feeds.images)}
        os.utime(path)  # it was used last
    except (OSError, ValueError):
        return None
    return values if all(each.dtype.kind == "f" and each.ndim for each in values.values()) else None


def keep_values(key: str, values: dict[str, Array]) -> None:
    """Keep values, and remove the files that were not used for longest; nothing is kept where that is not possible."""
    data = BytesIO()
    np.savez(data, allow_pickle=False, **{f"values{i}": each for i, each in enumerate(values.values())})
    keep_file(_place(key), data.getvalue())


def _place(key: str) -> Path:
    return cache_folder() / "references" / f"{key}.npz"
