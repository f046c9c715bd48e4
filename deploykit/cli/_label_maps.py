"""Options of label maps, which an evaluation of a segmentation network is scored against."""

from __future__ import annotations

from deploykit.cli._options import Flag

__all__ = ["label_map_flags", "label_or_none", "value_list"]


def label_map_flags(before: str = "") -> tuple[Flag, ...]:
    """Return the options; ``before`` begins their help."""
    return (
        Flag(
            "--mask-values",
            "mask_values",
            f"{before}the value of each class in the label maps, such as 0,255 or 1-150 (default: 0,1,2,...)",
            "N,N,...",
            value_list,
        ),
        Flag(
            "--ignore-label",
            "ignore_label",
            f"{before}the value of pixels that do not count, or none (default 255, unless it is a class)",
            "N",
            label_or_none,
        ),
    )


def value_list(text: str) -> tuple[int, ...]:
    """Parse ``0,255`` or ``1-150``."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


def label_or_none(text: str) -> int | str:
    """Parse a number or ``none``."""
    return text if text == "none" else int(text)
