"""The names of layers: those of nodes in a graph, and those of the network."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from deploykit.errors import UsageError

__all__ = ["label_of", "named_in"]


def label_of(node: ir.Node) -> str:
    """Return the name of a layer in the network: that of its weight, without the suffix ``.weight``."""
    for value in node.inputs[1:2]:
        if value is not None and value.is_initializer():
            return str(value.name).removesuffix(".weight")
    return str(node.name)


def named_in(labels: Mapping[str, str], wanted: Sequence[str], what: str) -> tuple[str, ...]:
    """Return the layers that match names or patterns (``*``, ``?``).

    Args:
        labels: layer, which is the name of its node -> its name in the network; both are matched.
        wanted: the names and patterns.
        what: what such layers are, for the message.

    Raises:
        UsageError: a name or pattern matches no layer.
    """
    found: list[str] = []
    for pattern in wanted:
        meant = [n for n, label in labels.items() if any(fnmatch.fnmatchcase(x, pattern) for x in (n, label))]
        if not meant:
            known = list(dict.fromkeys([*labels, *labels.values()]))
            near = difflib.get_close_matches(pattern, known, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(known[:3])}, ..."
            raise UsageError(f"no {what} is called {pattern!r}: {hint}")
        found += meant
    return tuple(dict.fromkeys(found))
