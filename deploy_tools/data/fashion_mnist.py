"""Fashion-MNIST: found, never made up.

Xiao, Rasul, Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine
learning algorithms", 2017. MIT licence. 60,000 training and 10,000 test images, 28x28 grey.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import shutil
import struct
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy_tools.data.source import ArraySource
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import UserError

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

# Mean and standard deviation of the 60,000 training images' pixels in [0, 1].
SPEC = InputSpec(size=(28, 28), mean=(0.2860,), std=(0.3530,), labels=CLASSES)

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
APT_COMMAND = "apt-get install dataset-fashion-mnist"
_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
# MD5 sums published by the authors (and checked by torchvision); name -> sum.
_FILES = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
# Of the decompressed files: Debian's package compresses the same bytes anew.
_SHA256 = {
    "train-images-idx3-ubyte.gz": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
    ),
    "train-labels-idx1-ubyte.gz": (
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
    ),
}
_PREFIX = {"train": "train", "test": "t10k"}


def cache_folder() -> Path:
    """Return where downloads are kept: $DEPLOY_TOOLS_CACHE, or deploy-tools in the user's cache."""
    chosen = os.environ.get("DEPLOY_TOOLS_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "deploy-tools"


def find_folder(root: Path | None = None, download: bool = True) -> Path:
    """Return a folder with the four files: the user's, the cache, Debian's package, a download.

    Raises UserError with the ways to get the data where none of them works. A folder that
    the user names and that lacks the files is an error, not a reason to look elsewhere.
    """
    if root is not None:
        if _is_complete(root):
            return root
        raise UserError(
            f"{root} does not hold Fashion-MNIST.", f"Needed there: {', '.join(_FILES)}."
        )
    cache = cache_folder() / "fashion-mnist"
    for folder in (cache, DEBIAN_FOLDER):
        if _is_complete(folder):
            return folder
    reason = "downloads are switched off"
    if download:
        try:
            _download(cache)
            return cache
        except (OSError, http.client.HTTPException) as error:
            reason = f"the download failed: {error}"
    raise UserError(
        f"Fashion-MNIST is not on this machine, and {reason}.",
        f"On Debian or Ubuntu: {APT_COMMAND}. Elsewhere: put {', '.join(_FILES)} "
        f"into {cache} or name their folder with --data.",
    )


def load(split: str, root: Path | None = None) -> ArraySource:
    """Return the "train" (60,000) or "test" (10,000) split.

    Raises UserError where a file is not byte for byte the published one: plain MNIST, for one,
    has the same names, sizes and labels.
    """
    if split not in _PREFIX:
        raise UserError(f'fashion-mnist has no split "{split}".', 'Use "train" or "test".')
    folder = find_folder(root)
    images = _read_idx(folder / f"{_PREFIX[split]}-images-idx3-ubyte.gz", 3)
    labels = _read_idx(folder / f"{_PREFIX[split]}-labels-idx1-ubyte.gz", 1)
    return ArraySource("fashion-mnist", split, images, labels, CLASSES)


def open_fashion_mnist(root: Path | None, split: str) -> ArraySource:
    """The same as `load`, with the arguments of every source's opener."""
    return load(split, root)


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _FILES)


def _download(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, md5 in _FILES.items():
        target = folder / name
        if target.is_file():
            continue
        part = target.with_name(f"{name}.{os.getpid()}.part")
        try:
            with urllib.request.urlopen(_URL + name, timeout=20) as reply, part.open("wb") as out:
                shutil.copyfileobj(reply, out)
            found = hashlib.md5(part.read_bytes(), usedforsecurity=False).hexdigest()
            if found != md5:
                raise OSError(f"{name} has MD5 {found} instead of {md5}")
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes (http://yann.lecun.com/exdb/mnist, "file formats").

    Once its sum is right, so is its shape.
    """
    again = "Remove it and fetch the data again."
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged: {error}.", again) from error
    if hashlib.sha256(data).hexdigest() != _SHA256[path.name]:
        raise UserError(f"{path} is not Fashion-MNIST (or is damaged).", again)
    shape = struct.unpack_from(f">{dimensions}I", data, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
