"""Labelled images: the one interface every data source has."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deploy_tools.data.preprocess import preprocess
from deploy_tools.data.spec import InputSpec


class ImageSource(Protocol):
    """One split of a labelled data set; images are read when asked for, one at a time."""

    name: str
    split: str
    classes: tuple[str, ...]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class index of every image, shape (N,)."""
        ...

    def __len__(self) -> int: ...

    def load(self, index: int) -> NDArray[np.uint8]:
        """Return the decoded image, shape (height, width, 1 or 3)."""
        ...

    def image_id(self, index: int) -> str:
        """Return a name that stays the same from run to run."""
        ...

    def content_hash(self, index: int) -> str:
        """Return the sha256 of the stored image: the same image twice gives the same hash."""
        ...


class ArraySource:
    """Images held in one uint8 array of shape (N, H, W) or (N, H, W, C)."""

    def __init__(
        self,
        name: str,
        split: str,
        images: NDArray[np.uint8],
        labels: NDArray[np.integer],
        classes: Sequence[str],
    ) -> None:
        self.name = name
        self.split = split
        self.classes = tuple(classes)
        self._images = images if images.ndim == 4 else images[..., None]
        self._labels = labels.astype(np.int64)

    @property
    def labels(self) -> NDArray[np.int64]:
        return self._labels

    def __len__(self) -> int:
        return len(self._images)

    def load(self, index: int) -> NDArray[np.uint8]:
        image: NDArray[np.uint8] = self._images[index]
        return image

    def image_id(self, index: int) -> str:
        return f"{self.split}/{index:06d}"

    def content_hash(self, index: int) -> str:
        return hashlib.sha256(np.ascontiguousarray(self._images[index]).tobytes()).hexdigest()


class SubsetSource:
    """Some images of another source, in the order of `indices`."""

    def __init__(self, base: ImageSource, indices: Sequence[int], split: str) -> None:
        self.name = base.name
        self.split = split
        self.classes = base.classes
        self._base = base
        self._indices = [int(i) for i in indices]

    @property
    def labels(self) -> NDArray[np.int64]:
        return self._base.labels[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def load(self, index: int) -> NDArray[np.uint8]:
        return self._base.load(self._indices[index])

    def image_id(self, index: int) -> str:
        return self._base.image_id(self._indices[index])

    def content_hash(self, index: int) -> str:
        return self._base.content_hash(self._indices[index])


def batches(
    source: ImageSource, spec: InputSpec, batch: int, indices: Sequence[int] | None = None
) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
    """Yield (inputs, labels): inputs as the spec has them, labels int64 of shape (<= batch,).

    Inputs are float32 of shape (<= batch, C, H, W), or uint8 of shape (<= batch, H, W, C).

    Only one batch is in memory at a time. The order is that of `indices` (default: all).
    """
    order = range(len(source)) if indices is None else indices
    labels = source.labels
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        inputs = np.empty(spec.shape(len(chosen)), spec.numpy_dtype)
        for row, index in enumerate(chosen):
            inputs[row] = preprocess(source.load(index), spec, source.image_id(index))
        yield inputs, labels[list(chosen)]


def source_hash(source: ImageSource, indices: Sequence[int] | None = None) -> str:
    """Return one sha256 over the content hashes and labels of the images, in order."""
    digest = hashlib.sha256()
    labels = source.labels
    for index in range(len(source)) if indices is None else indices:
        digest.update(f"{source.content_hash(index)} {labels[index]}\n".encode())
    return digest.hexdigest()
