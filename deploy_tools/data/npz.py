"""Images in one NumPy file: arrays `images`, `labels` and, where known, `classes`."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy_tools.data.source import ArraySource
from deploy_tools.errors import UserError


def open_npz(root: Path, split: str) -> ArraySource:
    """Open `root` where it is a file, else root/<split>.npz.

    images: uint8, (N, H, W) or (N, H, W, 1 or 3). labels: whole numbers, (N,).
    classes: names in the order of the label indices; without it they are unknown (empty).
    Raises UserError for other shapes and types; pickled objects are never loaded.
    """
    path = root if root.is_file() else root / f"{split}.npz"
    if not path.is_file():
        raise UserError(
            f"{path} does not exist.", "Name the file itself, or a folder that holds SPLIT.npz."
        )
    return read_npz(path, "npz", split)


def read_npz(path: Path, name: str, split: str, classes: Sequence[str] = ()) -> ArraySource:
    """Read and check one file; `classes` is used where the file names none."""
    arrays = _arrays(path)
    for key in ("images", "labels"):
        if key not in arrays:
            raise UserError(f'{path} lacks the array "{key}"; it has: {", ".join(arrays)}.')
    images, labels = arrays["images"], arrays["labels"]
    _check_images(images, path)
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise UserError(
            f"{path}: labels must be {len(images)} whole numbers, "
            f"got {labels.dtype} of shape {labels.shape}."
        )
    names = tuple(str(name) for name in arrays["classes"]) if "classes" in arrays else classes
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (names and high >= len(names)):
        raise UserError(f"{path}: labels run from {low} to {high} for {len(names)} classes.")
    return ArraySource(name, split, images, labels, names)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise UserError(f"{path} is a single array, not an .npz file.", "Use numpy.savez.")
        with loaded:
            wanted = [key for key in loaded.files if key in ("images", "labels", "classes")]
            others = [key for key in loaded.files if key not in wanted]
            found: dict[str, NDArray[Any]] = {key: loaded[key] for key in wanted}
            return found | {key: np.empty(0) for key in others}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        # numpy calls every file that it does not know a pickle.
        if "allow_pickle" in str(error) and _begins_with(path, b"PK", b"\x80", b"\x93NUMPY"):
            raise UserError(
                f"{path} holds pickled objects, which are never loaded.",
                "Save images and labels as plain arrays with numpy.savez.",
            ) from error
        raise UserError(
            f"{path} is damaged or is no .npz file.", "Make it with numpy.savez, or copy it again."
        ) from error


def _begins_with(path: Path, *starts: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(8).startswith(starts)


def _check_images(images: NDArray[Any], path: Path) -> None:
    if images.dtype != np.uint8:
        raise UserError(
            f"{path}: images must be uint8 pixels, got {images.dtype}.",
            "Save the pixels before scaling and normalizing them.",
        )
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise UserError(
            f"{path}: images must have shape (N, H, W) or (N, H, W, 1 or 3), got {images.shape}."
        )
    if images.size == 0:
        raise UserError(f"{path} holds no images.")
