"""Labelled image sources by name. A new one is one file and one line in `SOURCES`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, cast

from deploy_tools.errors import UserError, nearest

if TYPE_CHECKING:
    from deploy_tools.data.source import ImageSource

# name -> module and function; the function takes (root, split).
SOURCES = {
    "cifar10": ("deploy_tools.data.cifar10", "open_cifar10"),
    "fashion-mnist": ("deploy_tools.data.fashion_mnist", "open_fashion_mnist"),
    "imagefolder": ("deploy_tools.data.folder", "open_folder"),
    "imagenet": ("deploy_tools.data.folder", "open_imagenet"),
    "jsonl": ("deploy_tools.data.jsonl", "open_jsonl"),
    "npz": ("deploy_tools.data.npz", "open_npz"),
}
# These know where to look, or how to download, when the user names no folder.
WITHOUT_ROOT = ("fashion-mnist",)


def open_source(name: str, root: Path | None, split: str) -> ImageSource:
    """Open one split of a data source.

    root: the folder (or, for jsonl and npz, the file); None only for fashion-mnist, which is
        then looked for and downloaded.
    Raises UserError for an unknown name, a missing root or split, and data that is empty.
    """
    if name not in SOURCES:
        raise UserError(f'data source "{name}" is not known.', nearest(name, SOURCES))
    if root is None and name not in WITHOUT_ROOT:
        raise UserError(
            f"data source {name} needs the folder of its images.", "Set root or --data."
        )
    if root is not None and not root.exists():
        raise UserError(f"the data folder {root} does not exist.", "Correct root or --data.")
    module, function = SOURCES[name]
    return cast("ImageSource", getattr(importlib.import_module(module), function)(root, split))
