"""Images in .npz files, and CIFAR-10 in its three forms."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy_tools.data import open_source
from deploy_tools.data.cifar10 import CLASSES
from deploy_tools.errors import UserError

IMAGES = np.arange(4 * 5 * 6 * 3, dtype=np.uint8).reshape(4, 5, 6, 3)
LABELS = np.array([0, 2, 1, 2])


def write(path: Path, **changes: Any) -> Path:
    arrays = {"images": IMAGES, "labels": LABELS} | changes
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


def test_npz(tmp_path: Path) -> None:
    path = write(tmp_path / "val.npz", classes=np.array(["x", "y", "z"]))
    for root in (tmp_path, path):
        source = open_source("npz", root, "val")
        assert source.classes == ("x", "y", "z")
        assert source.labels.tolist() == [0, 2, 1, 2]
        assert np.array_equal(source.load(3), IMAGES[3])
        assert source.image_id(3) == "val/000003"
    assert len({source.content_hash(i) for i in range(4)}) == 4


def test_npz_grey_and_without_names(tmp_path: Path) -> None:
    source = open_source("npz", write(tmp_path / "val.npz", images=IMAGES[..., 0]), "val")
    assert source.load(0).shape == (5, 6, 1)
    assert source.classes == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, 'lacks the array "images"; it has: labels'),
        ({"labels": None}, 'lacks the array "labels"'),
        ({"images": IMAGES.astype(np.float32) / 255}, "must be uint8 pixels, got float32"),
        ({"images": IMAGES[..., :2]}, r"or \(N, H, W, 1 or 3\), got \(4, 5, 6, 2\)"),
        ({"images": IMAGES[0, 0]}, "must have shape"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "holds no images"),
        ({"labels": LABELS[:3]}, "labels must be 4 whole numbers"),
        ({"labels": LABELS / 2}, "labels must be 4 whole numbers, got float64"),
        ({"labels": LABELS - 1}, "labels run from -1 to 1"),
        ({"classes": np.array(["x", "y"])}, "labels run from 0 to 2 for 2 classes"),
        ({"labels": np.array([{}, 1, 2, 3], object)}, "pickled objects, which are never loaded"),
    ],
)
def test_bad_arrays(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_source("npz", write(tmp_path / "val.npz", **changes), "val")


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"val.npz does not exist"):
        open_source("npz", tmp_path, "val")
    whole = write(tmp_path / "whole.npz").read_bytes()
    for name, content in (("cut", whole[:300]), ("text", b"not an npz"), ("empty", b"")):
        (tmp_path / f"{name}.npz").write_bytes(content)
        with pytest.raises(UserError, match=r"is damaged or is no .npz file"):
            open_source("npz", tmp_path, name)
    np.save(tmp_path / "one.npy", IMAGES)
    with pytest.raises(UserError, match="a single array"):
        open_source("npz", tmp_path / "one.npy", "val")


def cifar(count: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    generator = np.random.default_rng(seed)
    return (
        generator.integers(0, 256, (count, 32, 32, 3), np.uint8),
        generator.integers(0, 10, count, np.uint8),
    )


def test_cifar10_arrays(tmp_path: Path) -> None:
    for name, count in (("cifar10_test.npz", 3), ("cifar10_train_calib2000.npz", 4)):
        images, labels = cifar(count, count)
        np.savez(tmp_path / name, images=images, labels=labels, lossless=np.ones(count, bool))
    test, train = (open_source("cifar10", tmp_path, split) for split in ("test", "train"))
    assert (len(test), len(train)) == (3, 4)
    assert test.classes == CLASSES
    images, labels = cifar(5, 0)
    np.savez(tmp_path / "cifar10_train_other.npz", images=images, labels=labels)
    with pytest.raises(UserError, match=r"several files for train: .* Keep cifar10_train.npz"):
        open_source("cifar10", tmp_path, "train")
    np.savez(tmp_path / "cifar10_train.npz", images=images, labels=labels)
    assert len(open_source("cifar10", tmp_path, "train")) == 5


@pytest.mark.parametrize("within", [".", "cifar-10-batches-bin"])
def test_cifar10_binary(tmp_path: Path, within: str) -> None:
    folder = tmp_path / within
    folder.mkdir(exist_ok=True)
    images, labels = cifar(10, 1)
    for number in range(5):
        part = slice(2 * number, 2 * number + 2)
        records = [
            bytes([label]) + image.transpose(2, 0, 1).tobytes()
            for image, label in zip(images[part], labels[part], strict=True)
        ]
        (folder / f"data_batch_{number + 1}.bin").write_bytes(b"".join(records))
    source = open_source("cifar10", tmp_path, "train")
    assert source.labels.tolist() == labels.tolist()
    assert all(np.array_equal(source.load(i), images[i]) for i in range(10))
    (folder / "data_batch_3.bin").write_bytes(b"12345")
    with pytest.raises(UserError, match=r"data_batch_3.bin is damaged: 5 bytes"):
        open_source("cifar10", tmp_path, "train")
    (folder / "data_batch_3.bin").write_bytes(bytes([10]) * 3073)
    with pytest.raises(UserError, match="label 10 of 10 classes"):
        open_source("cifar10", tmp_path, "train")
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(UserError, match=r"data_batch_3.bin does not exist"):
        open_source("cifar10", tmp_path, "train")


def test_cifar10_pickles_are_refused_unread(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match=r"pickles run code .*cifar-10-binary.tar.gz"):
        open_source("cifar10", tmp_path, "test")
    assert not (tmp_path / "ran").exists()


def test_cifar10_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'no split "tset". Did you mean "test"'):
        open_source("cifar10", tmp_path, "tset")
    with pytest.raises(UserError, match=r"does not hold CIFAR-10's test split.* cifar10_test.npz"):
        open_source("cifar10", tmp_path, "test")


def test_the_shared_cifar10(shared_data: Path) -> None:
    test = open_source("cifar10", shared_data / "cifar10", "test")
    train = open_source("cifar10", shared_data / "cifar10", "train")
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert np.bincount(train.labels).tolist() == [200] * 10
    assert test.load(0).shape == (32, 32, 3)
