"""The inputs of a parity check: sample images, preprocessed as at run time, and seeded noise with plain parts.

A quarter of the noise gives way to what a camera sees when it sees nothing: black, white, one colour, and the image
upside down. So they cost no further run. Where a network looks at the whole image that is not enough, and
:mod:`deploykit.export.parity.extremes` feeds whole ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.runtime.images.letterbox import Letterbox
from deploykit.runtime.images.placing import place_on_canvas
from deploykit.runtime.images.reading import read_image
from deploykit.runtime.images.to_tensor import to_nchw
from deploykit.runtime.parity.expected import Batch, ParityInputs
from deploykit.spec import InputSpec, ModelSpec

__all__ = [
    "BLACK", "GREY_LEVEL", "SAMPLE", "WHITE", "image_for", "make_parity_inputs", "plain_image", "preprocess_for_parity",
    "sample_image", "turned",
]  # fmt: skip

SAMPLE = "apollo11_crew.jpg"
SEED = 0
GREY = (0.114, 0.587, 0.299)  # weights of blue, green and red
BLACK, WHITE, GREY_LEVEL = 0.0, 255.0, 114.0  # the last is the border's of most letterboxes
BATCH_SLOTS = 3  # images per batch if the batch size is dynamic


def sample_image() -> Path:
    """Return the path of the image that ships with deploykit: three people, public domain (see NOTICE)."""
    return Path(str(resources.files("deploykit") / "assets" / SAMPLE))


def make_parity_inputs(spec: ModelSpec, images: Sequence[str | Path] = ()) -> ParityInputs:
    """Prepare sample images and noise for a network.

    A network that takes one image gets a batch of one for each. With a larger or dynamic batch it gets different images
    in shuffled slots, and one image in all slots. With a dynamic shape each image is added as a rectangle, too.

    Args:
        spec: the spec of the network.
        images: sample images; none takes :func:`sample_image`.

    Raises:
        ImageError, NotFoundError: a sample cannot be read.
    """
    canvas = spec.input
    fed: dict[str, Array] = {}
    for path in images or [sample_image()]:
        image = image_for(path, canvas)
        label = str(path) if Path(path).name in fed else Path(path).name
        fed[label] = preprocess_for_parity(image, canvas, auto=False)
        if canvas.dynamic == "shape":
            rectangle = preprocess_for_parity(image, canvas, auto=True)
            if rectangle.shape != fed[label].shape:
                fed[f"{label} as a {rectangle.shape[3]}x{rectangle.shape[2]} rectangle"] = rectangle
    fed[f"noise (seed {SEED})"] = _noise(canvas, next(iter(fed.values())))
    if canvas.dynamic == "none" and canvas.batch == 1:
        return ParityInputs(fed, tuple(Batch(label, (label,)) for label in fed))
    return _batched(fed, canvas)


def image_for(path: str | Path, canvas: InputSpec) -> Array:
    """Read an image for a network: with the network's channels if the file has so many, else BGR ``uint8 (H, W, 3)``.

    Raises:
        ImageError, NotFoundError: it cannot be read.
    """
    if canvas.channels not in (1, 3):
        own = read_image(path, channels=None)
        if own.ndim == 3 and own.shape[2] == canvas.channels:
            return own
    return read_image(path)


def _noise(canvas: InputSpec, image: Array) -> Array:
    """Return random pixels of 0 to 255, preprocessed for the network; four strips below hold what is not random.

    These are black, white, one colour and the right part of ``image (1, C, H, W)``, all of it turned upside down.
    """
    pixels = np.random.default_rng(SEED).random((1, canvas.channels, *canvas.size), np.float32) * 255
    noise = preprocessed(pixels, canvas)
    below, (height, width) = canvas.size[0] * 3 // 4, canvas.size
    strips = [slice(width * i // 4, width * (i + 1) // 4) for i in range(4)]
    for strip, colour in zip(strips, (BLACK, WHITE, GREY_LEVEL), strict=False):
        noise[..., below:, strip] = plain_image(canvas, colour, (height - below, strip.stop - strip.start))
    noise[..., below:, strips[3]] = turned(image)[..., below:, strips[3]]
    return noise


def preprocessed(pixels: Array, canvas: InputSpec) -> Array:
    """Return the network's values for pixels of 0 to 255, ``(1, C, H, W)`` float32."""
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (canvas.mean, canvas.std))
    found: Array = (pixels * np.float32(canvas.scale) - mean) / std
    return found


def plain_image(canvas: InputSpec, colour: float, size: tuple[int, int]) -> Array:
    """Return an image of one colour, the same in all channels, as the network sees it: ``(1, C, *size)`` float32."""
    return preprocessed(np.full((1, canvas.channels, *size), colour, np.float32), canvas)


def turned(image: Array) -> Array:
    """Return an image ``(1, C, H, W)`` upside down, as a camera sees it that hangs from the ceiling."""
    return np.ascontiguousarray(image[..., ::-1, ::-1])


def _batched(fed: dict[str, Array], canvas: InputSpec) -> ParityInputs:
    label = next(iter(fed))
    fed[f"{label} upside down"] = turned(fed[label])
    same_size = [name for name, image in fed.items() if image.shape == fed[label].shape]
    slots = BATCH_SLOTS if canvas.dynamic != "none" else canvas.batch
    order = [same_size[i] for i in np.random.default_rng(SEED).permutation(len(same_size))]
    # With a fixed batch there are enough batches to hold each image once.
    rounds = 1 if canvas.dynamic != "none" else -(-len(order) // slots)
    batches = [
        Batch(
            f"{slots} slots shuffled" + (f" ({n + 1} of {rounds})" if rounds > 1 else ""),
            tuple(order[i % len(order)] for i in range(n * slots, (n + 1) * slots)),
        )
        for n in range(rounds)
    ]
    batches.append(Batch(f"{slots} slots of {label}", (label,) * slots))
    if canvas.dynamic != "none":
        batches = [*(Batch(name, (name,)) for name in fed), *batches]
    return ParityInputs(fed, tuple(batches))


def preprocess_for_parity(image: Array, canvas: InputSpec, *, auto: bool) -> Array:
    """Preprocess an image as the Predictor does, but scale it to a canvas that is for tiles or padding.

    A network with another number of channels than the image gets red, green, blue and grey in turn: a parity check
    needs the values of a real image, not their meaning.
    """
    if canvas.fit.kind in ("crop", "letterbox"):
        placed = place_on_canvas(image, replace(canvas, fit=replace(canvas.fit, auto=auto))).canvas
    else:
        size = canvas.size
        if auto:  # the image's own rectangle
            size = Letterbox.fit(image.shape[:2], size, replace(canvas.fit, kind="letterbox"), auto=True).canvas
        resized = replace(canvas.fit, kind="resize")
        placed = Letterbox.fit(image.shape[:2], size, resized, auto=False).apply(image)
    if canvas.channels in (1, 3) or placed.shape[2] == canvas.channels:
        return to_nchw([placed], canvas)
    grey = np.rint(placed @ np.array(GREY)).astype(np.uint8)
    colours = [placed[..., 2], placed[..., 1], placed[..., 0], grey]
    planes = [colours[i % 4] for i in range(canvas.channels)]
    planes[:3] = planes[2::-1] if canvas.channels > 2 else planes  # OpenCV's order of channels
    return to_nchw([np.stack(planes, -1)], canvas)
