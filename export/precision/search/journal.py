"""What a search has measured so far, kept so that a search that is killed goes on where it was.

A file in the cache folder has everything under the hash of all that it depends on, and is written after each
measurement. What is damaged is as if it were not there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TypeVar, cast

import torch

from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.kept_bytes import keep_bytes, kept_bytes
from deploykit.runtime.backends.onnx_weights import external_paths
from deploykit.runtime.files import cache_folder
from deploykit.runtime.verified import sha256
from deploykit.strict_json import JsonError, parse_json
from deploykit.version import __version__

__all__ = ["Journal", "digest_of_file"]

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]


class Journal:
    """The measurements of one search.

    Args:
        place: the file; None: nothing is kept.
    """

    def __init__(self, place: Path | None) -> None:
        self._place = place
        self._known: dict[str, object] = {} if place is None else _read(place)
        self._earlier, self._used = frozenset(self._known), set[str]()

    @property
    def recalled(self) -> int:
        """How many measurements of an earlier run were used."""
        return len(self._used & self._earlier)

    @classmethod
    def of(cls, graph: bytes, images: Iterable[Array], about: Mapping[str, object]) -> Journal:
        """Return the journal of a search.

        Args:
            graph: what tells the fp32 file from others (:func:`digest_of_file`).
            images: the images that are measured on.
            about: everything else that measurements depend on, as JSON-able values.
        """
        digest = hashlib.sha256(graph)
        for image in images:
            digest.update(f"{image.dtype} {image.shape}".encode())
            digest.update(image.tobytes())
        digest.update(json.dumps([about, __version__, torch.__version__, _code()], sort_keys=True).encode())
        return cls(cache_folder() / "keep" / f"{digest.hexdigest()}.json")

    def recall(self, what: Iterable[object], measure: Callable[[], T]) -> T:
        """Return what was measured under these words, or measure it.

        ``measure`` returns a JSON-able value; one with infinity or NaN is not kept.
        """
        name = hashlib.sha256(json.dumps(list(what)).encode()).hexdigest()
        self._used.add(name)
        if name in self._known:
            return cast(T, self._known[name])
        found = measure()
        try:
            text = json.dumps(self._known | {name: found}, allow_nan=False)
        except ValueError:
            return found
        self._known[name] = found
        if self._place is not None:
            keep_bytes(self._place, text.encode())
        return found


def digest_of_file(file: Path) -> bytes:
    """Return what tells an ONNX file from others: hashes of it and of the files that hold its weights.

    Raises:
        ArtefactError: the file cannot be read.
    """
    return "".join(sha256(part) for part in (file, *external_paths(file))).encode()


@cache
def _code() -> str:
    """A hash of the source that measures."""
    digest = hashlib.sha256()
    for file in sorted(ROOT.rglob("*.py")):
        digest.update(f"\n{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _read(place: Path) -> dict[str, object]:
    try:
        found = parse_json(kept_bytes(place))
    except JsonError:
        return {}
    return found if isinstance(found, dict) else {}
