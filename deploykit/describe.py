"""A spec in sentences: what happens to an image before the network, and what its output holds."""

from __future__ import annotations

from deploykit.spec import DenseOutput, InputSpec, ModelSpec, NmsOutputs, PoseObjectRows

__all__ = ["columns", "dense_meaning", "pose_columns", "preprocessing"]


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
        return f"the middle {fit.crop_share:g} of the shorter side, scaled to {size}{way}"
    if fit.kind == "resize":
        return f"resize to {size}, each side by itself"
    whole = f"multiples of {fit.stride}" if canvas.dynamic == "shape" else size
    return f"mirrored up to {whole}" if fit.kind == "pad" else f"tiles of {size}"


def columns(spec: ModelSpec) -> str:
    """What the output's columns hold."""
    if isinstance(spec.output, NmsOutputs):
        limits = spec.thresholds
        return (
            f"after NMS, in network pixels: at most {limits.max_det} of an image, score over {limits.conf:g}, overlap "
            f"up to {limits.iou:g}, from the best {limits.pre_nms_topk} candidates"
        )
    if isinstance(spec.output, PoseObjectRows):
        return pose_columns(spec.output)
    if isinstance(spec.output, DenseOutput):
        return dense_meaning(spec)
    rows = spec.output
    parts = [f"{_span(rows.box)} cx cy w h"]
    if rows.obj:
        parts.append(f"{_span(rows.obj)} objectness")
    parts.append(f"{_span(rows.cls)} {len(spec.classes)} class{'es' if len(spec.classes) > 1 else ''}")
    if rows.keypoints and spec.keypoints:
        values = "x y v" if rows.kpt_dims == 3 else "x y"
        parts.append(f"{_span(rows.keypoints)} {len(spec.keypoints.names)} keypoints of {values}")
    return "; ".join(parts) + "; in network pixels, before NMS"


def _span(span: tuple[int, int]) -> str:
    return f"{span[0]}:" if span[1] - span[0] == 1 else f"{span[0]}-{span[1] - 1}:"


def dense_meaning(spec: ModelSpec) -> str:
    """What the values of one dense output are."""
    if spec.task == "restore":
        return "the restored image, in the numbers of the input"
    if spec.task == "features":
        return "the features of the image, in no unit"
    where = "the image" if spec.task == "classify" else "each pixel"
    if len(spec.classes) == 1:
        return f"the logit of {spec.classes[0]} of {where}; over 0 it is that"
    two = " (one channel: of the second against the first, before the sigmoid)" if len(spec.classes) == 2 else ""
    return f"logits of {len(spec.classes) or 'its'} classes of {where}, before softmax{two}"


def pose_columns(rows: PoseObjectRows) -> str:
    """What the columns of persons and keypoint objects hold, and what follows them."""
    points, fusion = rows.num_keypoints, rows.fusion
    box, cls, coords = (f"{start}-{stop - 1}:" for start, stop in (rows.box, rows.cls, rows.coords))
    return (
        f"{box} cx cy w h; {rows.obj[0]}: objectness; {cls} a person and {points} keypoints as classes; {coords} x y "
        "of a person's keypoints; in network pixels, before two runs of NMS (keypoints: over "
        f"{fusion.conf:g}, overlap {fusion.iou:g}) and their fusion (persons over {fusion.person:g}, within "
        f"{fusion.tolerance:g} source pixels)"
    )
