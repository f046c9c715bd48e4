"""A spec's input in a sentence: what happens to an image before the network. Its output describes itself."""

from __future__ import annotations

from deploykit.spec import InputSpec, ModelSpec

__all__ = ["preprocessing"]


def preprocessing(spec: ModelSpec) -> str:
    """One sentence on what happens to an image before the network."""
    canvas = spec.input
    order = canvas.colour.upper()
    scaled = "divided by 255" if canvas.scale == 1 / 255 else f"times {canvas.scale:g}"
    if any(canvas.mean) or any(s != 1 for s in canvas.std):
        scaled += f", minus {canvas.mean}, over {canvas.std}"
    elif canvas.scale == 1:
        scaled = "0 to 255"
    if canvas.channels != 3:
        order = "grey" if canvas.channels == 1 else f"{canvas.channels} channels"
    return f"{_fitted(canvas)}; {order}, {scaled}"


def _fitted(canvas: InputSpec) -> str:
    """How an image of any size gets on the canvas."""
    fit = canvas.fit
    height, width = canvas.size
    size = f"{width}x{height} (width x height)"
    if fit.kind == "letterbox":
        place = f"within {size}, as a rectangle" if fit.auto else f"to {size}"
        corner = ", at the top left" if fit.anchor == "top-left" else ""
        border = fit.pad_value if fit.pad_colour is None else f"blue, green, red {fit.pad_colour}"
        return f"letterbox {place}{corner}, pad {border}, stride {fit.stride}"
    if fit.kind == "crop":
        way = "" if fit.resample == "opencv" else f" ({fit.resample}, as Pillow)"
        what = "the middle square cut out," if fit.crop_first else "the middle"
        return f"{what} {fit.crop_share:g} of the shorter side, scaled to {size}{way}"
    if fit.kind == "resize":
        return f"resize to {size}, each side by itself"
    whole = f"multiples of {fit.stride}" if canvas.dynamic == "shape" else size
    return f"mirrored up to {whole}" if fit.kind == "pad" else f"tiles of {size}"
