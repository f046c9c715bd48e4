"""A network inside of another module: all of its names begin with that module's, ``model.``, ``net.encoder.``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.facts import class_names, strides
from deploykit.models.checkpoint.module_tree import Module
from deploykit.models.checkpoint.reader import Checkpoint

__all__ = ["Part", "parts_of"]

MAX_LEVELS = 4
_TRAINING = re.compile(
    r"(?:.*_)?(?:loss(?:es)?|criteri(?:on|a)|metrics?|acc(?:uracy)?[0-9]*|auroc|f1|confmat|queue(?:_ptr)?)(?:_.*)?"
)
"""Names of modules and buffers that training has beside a network."""


@dataclass(frozen=True)
class Part:
    """The tensors whose names begin with ``prefix``, which is taken off; ``others``: the names of the rest."""

    checkpoint: Checkpoint
    prefix: str
    others: tuple[str, ...] = ()

    def refusal(self) -> CheckpointError:
        """The error for a part that is of a network, where nothing tells what the rest of the tensors is."""
        part, entry = self.checkpoint, ".".join(filter(None, (self.checkpoint.entry, self.prefix[:-1])))
        named = ", ".join(name[:80] for name in self.others[:3]) + (", ..." if len(self.others) > 3 else "")
        return CheckpointError(
            f"{part.path}: the {len(part.state_dict):,} tensors whose names begin with {self.prefix} are those of "
            f"a network that deploykit knows, or nearly, and {len(self.others):,} others are beside them ({named}): "
            f"what they are together is not known; --entry {entry} takes the former alone"
        )


def parts_of(checkpoint: Checkpoint) -> Iterator[Part]:
    """The parts of a checkpoint that may be a network: what is below a common prefix, level by level, or below several.

    What training keeps beside a network, such as a loss, is left out and named.
    """
    prefix, left = "", tuple[str, ...]()
    for _ in range(MAX_LEVELS):
        names = [name for name in checkpoint.state_dict if name.startswith(prefix) and name not in left]
        groups: dict[str, list[str]] = {}
        for name in names:
            first, dot, _ = name.removeprefix(prefix).partition(".")
            groups.setdefault(first + dot, []).append(name)
        outside = [name for first in groups if _TRAINING.fullmatch(first.rstrip(".")) for name in groups[first]]
        groups = {first: found for first, found in groups.items() if found[0] not in outside}
        left = (*left, *outside)
        wrappers = [first for first in groups if first.endswith(".")]
        if len(wrappers) != 1 or len(groups) != 1:
            for first in wrappers:
                rest = [name for other in groups if other != first for name in groups[other]]
                yield _part(checkpoint, f"{prefix}{first}", groups[first], left, rest)
            return
        prefix += wrappers[0]
        yield _part(checkpoint, prefix, groups[wrappers[0]], left)


def _part(
    checkpoint: Checkpoint, prefix: str, names: Sequence[str], left: Sequence[str], others: Sequence[str] = ()
) -> Part:
    path = prefix[:-1]
    modules = [replace(m, path=m.path[len(prefix) :]) for m in checkpoint.modules if f"{m.path}.".startswith(prefix)]
    notes = [*checkpoint.notes, f"the prefix {prefix!r} of its names is removed"]
    if left:
        named = ", ".join(name[:80] for name in left[:5]) + (", ..." if len(left) > 5 else "")
        notes.append(f"{len(left)} tensors of its training are left out ({named})")
    own = _facts(checkpoint, next((m for m in checkpoint.modules if m.path == path), None), notes)
    state = {name.removeprefix(prefix): checkpoint.state_dict[name] for name in names}
    return Part(replace(own, state_dict=state, modules=tuple(modules), notes=tuple(notes)), prefix, tuple(others))


def _facts(checkpoint: Checkpoint, module: Module | None, notes: list[str]) -> Checkpoint:
    """With what the pickled module tells of itself, where the one around it tells nothing."""
    if module is None:
        return checkpoint
    facts = module.attributes
    yaml = facts.get("yaml")
    return replace(
        checkpoint,
        yaml=checkpoint.yaml or (yaml if isinstance(yaml, dict) else None),
        names=checkpoint.names or class_names(facts, {}, notes),
        stride=checkpoint.stride or strides(facts.get("stride")),
    )
