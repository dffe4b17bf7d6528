"""Fashion-MNIST: where it is looked for, and what a damaged copy gives."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import struct
import urllib.error
from pathlib import Path

import numpy as np
import pytest

from deploy_tools.data import fashion_mnist, open_source
from deploy_tools.errors import UserError


def write(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for prefix in ("train", "t10k"):
        pixels = np.arange(count * 784, dtype=np.uint8).tobytes()
        head = struct.pack(">4I", 0x0803, count, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + pixels))
        body = struct.pack(">2I", 0x0801, count) + bytes(range(count))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(body))
    return folder


def trust(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take what `write` wrote for the published files."""
    sums = {
        path.name: hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest()
        for path in folder.glob("*.gz")
    }
    monkeypatch.setattr(fashion_mnist, "_SHA256", sums)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No cache, no Debian package, no network."""

    def unreachable(*_args: object, **_options: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("DEPLOY_TOOLS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    return tmp_path


def test_the_order_of_places(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trust(write(nowhere / "debian", 4), monkeypatch)
    assert len(open_source("fashion-mnist", None, "test")) == 4
    trust(write(nowhere / "cache" / "fashion-mnist", 5), monkeypatch)
    assert len(open_source("fashion-mnist", None, "train")) == 5
    trust(write(nowhere / "own", 6), monkeypatch)
    source = open_source("fashion-mnist", nowhere / "own", "train")
    assert len(source) == 6
    assert source.load(0).shape == (28, 28, 1)
    assert source.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert len(source.classes) == 10


def test_nothing_anywhere_says_how_to_get_it(nowhere: Path) -> None:
    with pytest.raises(UserError, match=r"the download failed: .*no route.*apt-get install"):
        open_source("fashion-mnist", None, "test")
    with pytest.raises(UserError, match="downloads are switched off"):
        fashion_mnist.find_folder(download=False)
    assert not list(nowhere.rglob("*.part"))


def test_a_wrong_or_broken_download(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = write(nowhere / "good") / "train-images-idx3-ubyte.gz"
    monkeypatch.setattr("urllib.request.urlopen", lambda *_a, **_o: good.open("rb"))
    with pytest.raises(UserError, match=r"has MD5 \w+ instead of"):
        open_source("fashion-mnist", None, "test")

    def cut(*_args: object, **_options: object) -> None:
        raise http.client.IncompleteRead(b"half")

    monkeypatch.setattr("urllib.request.urlopen", cut)
    with pytest.raises(UserError, match="the download failed"):
        open_source("fashion-mnist", None, "test")
    assert not list((nowhere / "cache").rglob("*.gz*"))


def test_damaged_files(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(nowhere / "own")
    trust(folder, monkeypatch)
    images = folder / "t10k-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    flipped = bytearray(whole)
    flipped[20] ^= 0xFF
    for content in (whole[: len(whole) // 2], bytes(flipped), b"text"):
        images.write_bytes(content)
        with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte.gz is damaged"):
            open_source("fashion-mnist", folder, "test")


@pytest.mark.parametrize("split", ["train", "test"])
def test_files_of_the_right_shape_that_are_another_data_set(split: str, nowhere: Path) -> None:
    count = {"train": 60_000, "test": 10_000}[split]
    folder = write(nowhere / "mnist")
    prefix = {"train": "train", "test": "t10k"}[split]
    images = struct.pack(">4I", 0x0803, count, 28, 28) + bytes(count * 784)
    labels = struct.pack(">2I", 0x0801, count) + bytes(count)
    (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images, 1))
    (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels, 1))
    with pytest.raises(UserError) as caught:
        open_source("fashion-mnist", folder, split)
    assert f"{prefix}-images-idx3-ubyte.gz is not Fashion-MNIST (or is damaged)" in str(
        caught.value
    )


def test_the_right_images_with_wrong_labels(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(nowhere / "own")
    trust(folder, monkeypatch)
    body = struct.pack(">2I", 0x0801, 3) + bytes([2, 1, 0])
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(body))
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte\.gz is not Fashion-MNIST"):
        open_source("fashion-mnist", folder, "test")


def test_the_same_bytes_compressed_anew_are_accepted(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(nowhere / "own")
    trust(folder, monkeypatch)
    for path in folder.glob("*.gz"):
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1, mtime=7))
    assert len(open_source("fashion-mnist", folder, "test")) == 3


def test_an_unknown_split(nowhere: Path) -> None:
    with pytest.raises(UserError, match='no split "val"'):
        open_source("fashion-mnist", None, "val")
