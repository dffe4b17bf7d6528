"""CIFAR-10: as .npz files, or as the authors' binary version.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. 50,000 training
and 10,000 test images, 32x32 RGB.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deploy_tools.data.npz import read_npz
from deploy_tools.data.source import ArraySource
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import UserError, nearest

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer",
    "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

# The statistics that the public ResNets of this family were trained with (ImageNet's).
SPEC = InputSpec(
    size=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), labels=CLASSES
)

SPLITS = ("train", "test")
_BINARY_FOLDER = "cifar-10-batches-bin"
_PICKLE_FOLDER = "cifar-10-batches-py"
_BINARY_FILES = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}
_RECORD = 1 + 3 * 32 * 32


def open_cifar10(root: Path, split: str) -> ArraySource:
    """Open the "train" or "test" split.

    root: a folder with cifar10_test.npz and one cifar10_train*.npz (arrays images, labels),
    or with the binary version's files (data_batch_1.bin ...), itself or in
    cifar-10-batches-bin. Raises UserError where neither is there; the Python version is
    pickled and so refused.
    """
    if split not in SPLITS:
        raise UserError(f'cifar10 has no split "{split}".', nearest(split, SPLITS))
    arrays = sorted(root.glob(f"cifar10_{split}*.npz"))
    exact = root / f"cifar10_{split}.npz"
    if exact in arrays:
        arrays = [exact]
    if len(arrays) > 1:
        names = ", ".join(path.name for path in arrays)
        raise UserError(f"{root} has several files for {split}: {names}.", f"Keep {exact.name}.")
    if arrays:
        return read_npz(arrays[0], "cifar10", split, CLASSES)
    for folder in (root, root / _BINARY_FOLDER):
        if (folder / _BINARY_FILES[split][0]).is_file():
            return _read_binary(folder, split)
    raise _not_found(root, split)


def _read_binary(folder: Path, split: str) -> ArraySource:
    """Read records of one label byte and 3x32x32 pixels (the authors' page, "binary version")."""
    parts = []
    for name in _BINARY_FILES[split]:
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} does not exist.", "Extract cifar-10-binary.tar.gz again.")
        data = np.fromfile(path, np.uint8)
        if len(data) == 0 or len(data) % _RECORD:
            raise UserError(
                f"{path} is damaged: {len(data)} bytes are no multiple of {_RECORD}.",
                "Extract cifar-10-binary.tar.gz again.",
            )
        parts.append(data.reshape(-1, _RECORD))
    records = np.concatenate(parts)
    labels = records[:, 0]
    if labels.max() >= len(CLASSES):
        raise UserError(f"{folder} is damaged: label {labels.max()} of {len(CLASSES)} classes.")
    images = np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return ArraySource("cifar10", split, images, labels, CLASSES)


def _not_found(root: Path, split: str) -> UserError:
    for folder in (root, root / _PICKLE_FOLDER):
        if (folder / "test_batch").is_file():
            return UserError(
                f"{folder} is CIFAR-10's Python version, whose pickles run code when read; "
                "it is refused.",
                "Use the binary version (cifar-10-binary.tar.gz from the authors' page), or "
                "convert it where you trust it: d = torchvision.datasets.CIFAR10(ROOT, "
                f"train={split == 'train'}); numpy.savez('cifar10_{split}.npz', "
                "images=d.data, labels=d.targets).",
            )
    return UserError(
        f"{root} does not hold CIFAR-10's {split} split.",
        f"Needed there: cifar10_{split}.npz or {_BINARY_FOLDER}/{_BINARY_FILES[split][0]}.",
    )
