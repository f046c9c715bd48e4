"""Key layouts of U-Nets: how each known project names its tensors, and what no tensor says.

A U-Net is built under the keys of milesial/Pytorch-UNet (GPL-3.0: facts only), or under our own where a project's is
built otherwise. A layout says for each of these keys how a project calls it. One more project is one more layout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["LAYOUTS", "KeyLayout", "Kind", "layout_of"]

Kind = Literal["joined", "pooled", "valid"]


@dataclass(frozen=True)
class KeyLayout:
    """One project's keys.

    Attributes:
        name: what its networks are called.
        signature: keys that all of its state dicts have, and nobody else's.
        level: a pattern at the beginning of some keys, whose group is the number of a level of the contracting side.
        first: the lowest of these numbers.
        paths: where our tensors are -> where the file's are, from the number of the level (in our path ``#``) and the
            depth. What is not named here is called alike.
        kind: ``joined``: what is enlarged meets the contracting side before a halving, above a bottleneck; ``pooled``:
            after a halving, and there is no bottleneck; ``valid``: as joined, with neither padding nor batch norms.
        skip_first: whether the contracting side comes first where the two are joined.
        notes: what no tensor says and was assumed.
    """

    name: str
    signature: tuple[str, ...]
    level: str
    first: int
    paths: Mapping[str, Callable[[int, int], str]] = field(default_factory=dict)
    kind: Kind = "joined"
    skip_first: bool = True
    notes: tuple[str, ...] = ()

    def depth(self, keys: Iterable[str]) -> int:
        """How often the image is halved."""
        numbers = (re.match(self.level, key) for key in keys)
        return max((int(m[1]) + 1 - self.first for m in numbers if m), default=0)

    def own_name(self, key: str, depth: int) -> str:
        """How the file calls what is ``key`` here."""
        for path, name in self.paths.items():
            match = re.fullmatch(re.escape(path).replace(r"\#", "(?P<level>[0-9]+)") + r"\.(?P<rest>.+)", key)
            if match:
                level = int(match["level"]) if "#" in path else 0
                return f"{name(level, depth)}.{match['rest']}"
        return key


VALID = KeyLayout(  # of the 2015 paper no PyTorch weights are published: the keys are ours
    name="unet-2015",
    signature=("inc.double_conv.0.weight", "inc.double_conv.2.weight", "outc.conv.weight"),
    level=r"down([0-9]{1,3})\.maxpool_conv\.",
    first=1,
    kind="valid",
)

MILESIAL = KeyLayout(
    name="unet",
    signature=("inc.double_conv.0.weight", "outc.conv.weight"),
    level=r"down([0-9]{1,3})\.maxpool_conv\.",
    first=1,
)

MODULE_LISTS = KeyLayout(
    name="unet",
    signature=("down_sample.0.conv.conv.0.weight", "bottle_neck.conv.0.weight", "finalconv.weight"),
    level=r"down_sample\.([0-9]{1,3})\.",
    first=0,
    paths={
        "inc.double_conv": lambda _, __: "down_sample.0.conv.conv",
        "down#.maxpool_conv.1.double_conv": lambda level, depth: (
            f"down_sample.{level}.conv.conv" if level < depth else "bottle_neck.conv"
        ),
        "up#.up": lambda level, _: f"up_sample.{level - 1}.up",
        "up#.conv.double_conv": lambda level, _: f"up_sample.{level - 1}.conv.conv",
        "outc.conv": lambda _, __: "finalconv",
    },
    skip_first=False,
    notes=(
        "no tensor says in which order its levels are joined: what was enlarged comes first, which alone fits the "
        "statistics of a trained one's batch norms",
    ),
)

POOLED = KeyLayout(
    name="unet-pooled",
    signature=("conv1.0.weight", "upconv1.0.weight", "upconv1.6.weight"),
    level=r"conv([0-9]{1,3})\.",
    first=1,
    paths={
        "down#.conv.double_conv": lambda level, _: f"conv{level}",
        "up#.conv.double_conv": lambda level, depth: f"upconv{depth + 1 - level}",
        "up#.up": lambda level, depth: f"upconv{depth + 1 - level}.6",
    },
    kind="pooled",
    skip_first=False,
    notes=(
        "no tensor says how it halves and in which order it joins: by the largest of 3x3, and what was enlarged first, "
        "as in a published export of one",
    ),
)

LAYOUTS = (VALID, MILESIAL, MODULE_LISTS, POOLED)


def layout_of(keys: Container[str]) -> KeyLayout | None:
    """The layout whose signature the keys have; None: it is no U-Net that is known."""
    return next((layout for layout in LAYOUTS if all(key in keys for key in layout.signature)), None)
