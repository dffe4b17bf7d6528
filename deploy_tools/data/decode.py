"""From an image file to the pixels that a model takes, with less work than decoding it whole.

`decode_image` and `preprocess` are the reference: decode every pixel, resize the whole image, cut
the middle out. Two savings, by Pillow alone:

- Only what the crop needs is resized. Pillow keeps the place of the cut in float32, so that a
  pixel now and then rounds to its neighbour: `CROPPED_TOLERANCE`.
- A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, by the inverse DCT of libjpeg, where that
  leaves at least `MARGIN` times the size that it is resized to.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deploy_tools.data.files import decode_image, opened_image
from deploy_tools.data.preprocess import preprocess, resize_and_crop, resized_size
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import UserError, nearest

DECODERS = ("reference", "cropped", "scaled")
"""reference: as calibration and evaluation do it. cropped: only what is cut out is resized.
scaled: cropped, and large JPEGs are decoded at a fraction of their size."""
CROPPED_TOLERANCE = 2
"""Levels of 255 by which a pixel of "cropped" may differ from the reference."""
MARGIN = 2.0
"""A scaled decode keeps at least this many times the pixels that the resize asks for, along each
side. Pillow's own thumbnails keep as much (`reducing_gap`)."""

Size = tuple[int, int]


def load_input(path: Path, spec: InputSpec, decoder: str) -> NDArray[Any]:
    """Return the file as `preprocess` gives it: what the model takes, without the batch axis.

    decoder: one of `DECODERS`. Raises UserError as `decode_pixels` does.
    """
    if decoder == "reference":
        return preprocess(decode_image(path), spec, str(path))
    pixels = decode_pixels(path, spec, decoder)
    return preprocess(pixels, replace(spec, resize=None, crop="none"), str(path))


def decode_pixels(path: Path, spec: InputSpec, decoder: str = "scaled") -> NDArray[np.uint8]:
    """Decode, resize and crop; returns (H, W, C) uint8 with the spec's H, W and C.

    decoder: "cropped" or "scaled". Every mode becomes RGB, or grey where the spec has one channel;
    the EXIF orientation is left alone, as in `decode_image`.
    Raises UserError for another decoder; and, naming the file, where it is missing, damaged,
    larger than Pillow's limit, or of a size that does not fit a spec without resize.
    """
    if decoder not in DECODERS[1:]:
        raise UserError(f'decoder "{decoder}" is not known.', nearest(decoder, DECODERS[1:]))
    with opened_image(path) as image:
        size = (image.height, image.width)
        divisor = _largest_divisor(size, spec) if decoder == "scaled" else 1
        if divisor > 1:
            # Formats other than JPEG ignore it.
            image.draft(image.mode, (size[1] // divisor, size[0] // divisor))
            # libjpeg rounds the size of a scaled decode up.
            if image.size != (-(-size[1] // divisor), -(-size[0] // divisor)):
                divisor = 1
        cut = _resized_and_cut(image, size, divisor, spec)
    return resize_and_crop(cut, replace(spec, resize=None), str(path))


def _largest_divisor(size: Size, spec: InputSpec) -> int:
    """Return the largest divisor at which an image keeps `MARGIN` times what its resize needs."""
    # Nearest takes single pixels, which a scaled decode would replace by averages.
    if spec.resize is None or spec.interpolation == "nearest":
        return 1
    target = resized_size(size, spec.resize)
    fits = (
        d for d in (8, 4, 2) if all(s >= d * MARGIN * t for s, t in zip(size, target, strict=True))
    )
    return next(fits, 1)


def _resized_and_cut(
    image: Image.Image, size: Size, divisor: int, spec: InputSpec
) -> NDArray[np.uint8]:
    """Resize what the crop needs of an image of `size` that is decoded at 1/divisor of it."""
    if image.mode != "RGB":
        image = image.convert("RGB")
    if spec.channels == 1:
        image = image.convert("L")
    target = size if spec.resize is None else resized_size(size, spec.resize)
    top, left, height, width = _cut_of(target, spec)
    if target != size:
        # In the pixels of the decoded image, whose last row and column may be partial ones.
        rows, columns = (s / t / divisor for s, t in zip(size, target, strict=True))
        box = (left * columns, top * rows, (left + width) * columns, (top + height) * rows)
        method = Image.Resampling[spec.interpolation.upper()]
        image = image.resize((width, height), method, box=box)
    elif (height, width) != size:
        image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _cut_of(target: Size, spec: InputSpec) -> tuple[int, int, int, int]:
    """Return top, left, height and width of the centre crop in the resized image.

    The whole image where there is no crop, where the crop needs padding, and for nearest and box:
    their weights jump, so the last bit of a position decides which pixels they take.
    """
    height, width = spec.size
    fits = target[0] >= height and target[1] >= width
    if spec.crop != "center" or not fits or spec.interpolation in ("nearest", "box"):
        return (0, 0, *target)
    return round((target[0] - height) / 2.0), round((target[1] - width) / 2.0), height, width
