"""From an image file to the pixels that a model takes, with less work than decoding it whole.

`decode_image` and `preprocess` are the reference: decode every pixel, resize the whole image, cut
the middle out. Here only what the middle needs is resized, which changes no pixel, and a JPEG is
decoded at a fraction n/8 of its size where that is still at least `MARGIN` times the size it is
resized to. The inverse DCT does that scaling (libjpeg-turbo's `scale_num`/`scale_denom`), with
another filter than the resize, so pixels differ by a few levels: docs/how-it-works.md says how
much that changes.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deploy_tools.data.files import decode_image, opened_image
from deploy_tools.data.preprocess import preprocess, resize_and_crop, resized_size
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import UserError, nearest, require

DECODERS = ("reference", "exact", "pillow", "simplejpeg")
"""reference: as training and evaluation do it. exact: the same pixels, resizing only what is cut
out. pillow: JPEGs decoded at 1/2, 1/4 or 1/8 too. simplejpeg: at every n/8."""
MARGIN = 1.0
"""A scaled decode has at least this many times the pixels, along each side, that it is resized
to."""
_SMALLEST = 64  # below, rounding makes the sizes of neighbouring fractions alike

Size = tuple[int, int]


def find_decoder(wanted: str) -> tuple[str, str]:
    """Return the decoder to use, and what to tell the user where it is a slower one.

    wanted: one of `DECODERS`, or "auto" for simplejpeg where it is installed and pillow elsewhere.
    Raises UserError for another name, MissingDependencyError for simplejpeg without its package.
    """
    if wanted not in (*DECODERS, "auto"):
        raise UserError(f'decoder "{wanted}" is not known.', nearest(wanted, (*DECODERS, "auto")))
    if wanted == "simplejpeg":
        require("simplejpeg", "decode", "the decoder simplejpeg")
    if wanted != "auto":
        return wanted, ""
    try:
        importlib.import_module("simplejpeg")
    except ImportError:
        return "pillow", (
            "JPEGs are decoded by Pillow; simplejpeg is faster: pip install 'deploy-tools[decode]'"
        )
    return "simplejpeg", ""


def load_input(path: Path, spec: InputSpec, decoder: str) -> NDArray[Any]:
    """Return the file as `preprocess` gives it: what the model takes, without the batch axis.

    decoder: one of `DECODERS`. Raises UserError as `decode_pixels` does.
    """
    if decoder == "reference":
        return preprocess(decode_image(path), spec, str(path))
    return preprocess(decode_pixels(path, spec, decoder), _fitting(spec), str(path))


def decode_pixels(path: Path, spec: InputSpec, decoder: str = "exact") -> NDArray[np.uint8]:
    """Decode, resize and crop; returns (H, W, C) uint8 with the spec's H, W and C.

    decoder: one of `DECODERS` but "reference". Every mode becomes RGB, or grey where the spec has
    one channel; the EXIF orientation is left alone, as in `decode_image`.
    Raises UserError, naming the file, where it is missing, damaged, larger than Pillow's limit,
    or of a size that does not fit a spec without resize.
    """
    if decoder == "simplejpeg":
        pixels = _by_simplejpeg(path, spec)
        if pixels is not None:
            return pixels
    with opened_image(path) as image:
        size = (image.height, image.width)
        eighths = 8
        if decoder != "exact" and (fraction := _smallest_fraction(size, spec, (1, 2, 4))) < 8:
            image.draft(image.mode, _scaled(size, fraction)[::-1])
            if (image.height, image.width) == _scaled(size, fraction):
                eighths = fraction
        return _resized_and_cut(image, size, eighths, spec, path)


def _by_simplejpeg(path: Path, spec: InputSpec) -> NDArray[np.uint8] | None:
    """Return None for what is Pillow's: other formats, CMYK, damaged and too large files.

    Pillow then decodes or refuses them, in the same words with every decoder.
    """
    simplejpeg = require("simplejpeg", "decode", "the decoder simplejpeg")
    try:
        data = path.read_bytes()
        if not data.startswith(b"\xff\xd8\xff"):
            return None
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        limit = Image.MAX_IMAGE_PIXELS
        if space not in ("Gray", "YCbCr", "RGB") or (limit and width * height > limit):
            return None
        eighths = _smallest_fraction((height, width), spec, range(1, 8))
        least = _scaled((height, width), eighths)
        decoded = simplejpeg.decode_jpeg(data, "RGB", min_height=least[0], min_width=least[1])
    except (OSError, ValueError):
        return None
    if decoded.shape[:2] != least:
        return None
    return _resized_and_cut(Image.fromarray(decoded), (height, width), eighths, spec, path)


def _smallest_fraction(size: Size, spec: InputSpec, eighths: Any) -> int:
    """Return the smallest of `eighths` at which an image keeps what its resize needs, else 8."""
    # Nearest takes single pixels, which a scaled decode would replace by averages.
    if spec.resize is None or spec.interpolation == "nearest" or min(size) < _SMALLEST:
        return 8
    target = resized_size(size, spec.resize)
    for n in sorted(eighths):
        if all(s * n >= 8 * MARGIN * t for s, t in zip(size, target, strict=True)):
            return int(n)
    return 8


def _scaled(size: Size, eighths: int) -> Size:
    """Return the size at which libjpeg decodes an image of `size`: n/8 of it, rounded up."""
    return -(-size[0] * eighths // 8), -(-size[1] * eighths // 8)


def _resized_and_cut(
    image: Image.Image, size: Size, eighths: int, spec: InputSpec, path: Path
) -> NDArray[np.uint8]:
    """Resize what the crop needs of an image that was decoded at eighths/8 of `size`."""
    if image.mode != "RGB":
        image = image.convert("RGB")
    if spec.channels == 1:
        image = image.convert("L")
    target = size if spec.resize is None else resized_size(size, spec.resize)
    cut = _cut_of(target, spec)
    if target != size:
        # Where the cut lies in the decoded image, whose last column may be a partial one.
        rows, columns = (s * eighths / 8 / t for s, t in zip(size, target, strict=True))
        top, left, height, width = cut
        box = (left * columns, top * rows, (left + width) * columns, (top + height) * rows)
        method = Image.Resampling[spec.interpolation.upper()]
        image = image.resize((width, height), method, box=box)
    elif cut != (0, 0, *size):
        top, left, height, width = cut
        image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return resize_and_crop(pixels, replace(spec, resize=None), str(path))


def _cut_of(target: Size, spec: InputSpec) -> tuple[int, int, int, int]:
    """Return top, left, height and width of the centre crop in the resized image.

    The whole image where there is no crop, where the crop needs padding, and for nearest, which
    rounds its positions differently in a part of the image.
    """
    height, width = spec.size
    fits = target[0] >= height and target[1] >= width
    if spec.crop != "center" or not fits or spec.interpolation == "nearest":
        return (0, 0, *target)
    return round((target[0] - height) / 2.0), round((target[1] - width) / 2.0), height, width


def _fitting(spec: InputSpec) -> InputSpec:
    """Return the spec for pixels that have their size already."""
    return replace(spec, resize=None, crop="none")
