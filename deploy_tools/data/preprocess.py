"""From a decoded image to the model's input, as the input spec says.

Same arithmetic as torchvision's Resize, CenterCrop, ToTensor and Normalize on PIL images
(antialiased resize; the short side is rounded down as `int(size * long / short)`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import UserError

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}


def preprocess(image: NDArray[np.uint8], spec: InputSpec, name: str = "image") -> NDArray[Any]:
    """Resize and crop; then scale to [0, 1] and normalize, unless the model takes pixels.

    image: (height, width, 1 or 3) uint8. Returns (C, H, W) float32 with the spec's C, H, W, or
    (H, W, C) uint8 where the spec's dtype says so: no float image is made then.
    Raises UserError, naming the image, where its size does not fit a spec without resize.
    """
    pixels = resize_and_crop(_with_channels(image, spec.channels), spec, name)
    if spec.takes_pixels:
        return np.ascontiguousarray(pixels)
    scaled = pixels.astype(np.float32) / np.float32(255)
    normalized = (scaled - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)
    return np.ascontiguousarray(normalized.transpose(2, 0, 1))


def resize_and_crop(
    image: NDArray[np.uint8], spec: InputSpec, name: str = "image"
) -> NDArray[np.uint8]:
    """Return the uint8 pixels (H, W, C) at the spec's size, before scaling."""
    if spec.resize is not None:
        image = _resize(image, resized_size(image.shape[:2], spec.resize), spec.interpolation)
    if spec.crop == "center" and image.shape[:2] != spec.size:
        image = _center_crop(image, spec.size)
    if image.shape[:2] != spec.size:
        raise UserError(
            f"{name} is {image.shape[0]}x{image.shape[1]} pixels and the model takes "
            f"{spec.size[0]}x{spec.size[1]}.",
            'Set resize (and crop = "center") in the recipe\'s [input].',
        )
    return image


def _with_channels(image: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    if image.shape[2] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    grey = np.asarray(Image.fromarray(image).convert("L"))
    return grey[..., None]


def resized_size(size: tuple[int, ...], resize: int | tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) that an image of `size` is resized to, before any crop."""
    if not isinstance(resize, int):
        return resize
    height, width = size
    if height <= width:
        return resize, int(resize * width / height)
    return int(resize * height / width), resize


def _resize(image: NDArray[np.uint8], size: tuple[int, int], how: str) -> NDArray[np.uint8]:
    if image.shape[:2] == size:
        return image
    pil = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    resized = np.asarray(pil.resize((size[1], size[0]), _RESAMPLING[how]))
    return resized[..., None] if resized.ndim == 2 else resized


def _center_crop(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Cut the middle out; pad with zeros where the image is smaller (as torchvision does)."""
    pad_height = max(size[0] - image.shape[0], 0)
    pad_width = max(size[1] - image.shape[1], 0)
    if pad_height or pad_width:
        before = (pad_height // 2, pad_width // 2)
        after = ((pad_height + 1) // 2, (pad_width + 1) // 2)
        image = np.pad(image, ((before[0], after[0]), (before[1], after[1]), (0, 0)))
    top = round((image.shape[0] - size[0]) / 2.0)
    left = round((image.shape[1] - size[1]) / 2.0)
    return image[top : top + size[0], left : left + size[1]]
