"""Labelled images that lie in files, decoded when asked for."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from deploy_tools.errors import UserError


class FileSource:
    """One image file and one label each; every file is read anew at each `load`.

    root: the folder that image ids are relative to.
    classes: names in the order of the label indices; empty where unknown.
    """

    def __init__(
        self,
        name: str,
        split: str,
        root: Path,
        files: Sequence[Path],
        labels: Sequence[int],
        classes: Sequence[str],
    ) -> None:
        self.name = name
        self.split = split
        self.classes = tuple(classes)
        self._root = root
        self._files = tuple(files)
        self._labels = np.asarray(labels, np.int64)

    @property
    def labels(self) -> NDArray[np.int64]:
        return self._labels

    def __len__(self) -> int:
        return len(self._files)

    def path(self, index: int) -> Path:
        """Return the image's file."""
        return self._files[index]

    def load(self, index: int) -> NDArray[np.uint8]:
        return decode_image(self._files[index])

    def image_id(self, index: int) -> str:
        file = self._files[index]
        if file.is_relative_to(self._root):
            return file.relative_to(self._root).as_posix()
        return file.as_posix()

    def content_hash(self, index: int) -> str:
        try:
            return hashlib.sha256(self._files[index].read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(
                f"{self._files[index]} cannot be read: {error.strerror or error}."
            ) from error


def decode_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file as RGB; returns (height, width, 3) uint8.

    As torchvision's default loader does, it leaves the EXIF orientation alone.
    Raises UserError, naming the file, where it is missing, damaged or larger than Pillow's
    limit for decompression bombs.
    """
    with opened_image(path) as image:
        return np.asarray(image.convert("RGB"))


@contextlib.contextmanager
def opened_image(path: Path) -> Iterator[Image.Image]:
    """Open an image file; its pixels are decoded when they are first needed, inside the block.

    Raises what `decode_image` raises, for what goes wrong inside the block too.
    """
    try:
        with Image.open(path) as image:
            refuse_bomb(image.width, image.height)
            yield image
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{path} is larger than Pillow's limit for images: {error}.",
            "Scale it down or remove it.",
        ) from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not an image.", "Replace or remove it.") from error
    # Decoders raise what they like on damaged files: struct.error, IndexError, SyntaxError.
    except Exception as error:
        raise UserError(
            f"{path} is damaged or cannot be read: {error}.", "Replace or remove it."
        ) from error


def refuse_bomb(width: int, height: int) -> None:
    """Raise Pillow's DecompressionBombError above its limit, where Pillow itself only warns."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit and width * height > limit:
        raise Image.DecompressionBombError(f"{width}x{height} pixels, limit {limit}")
