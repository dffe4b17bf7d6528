"""Image folders: root/split/class/*.jpg, classes in alphabetical order."""

from __future__ import annotations

import os
import re
from pathlib import Path

from deploy_tools.data.files import FileSource
from deploy_tools.errors import UserError, nearest

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_WORDNET_ID = re.compile(r"n\d{8}")


def open_folder(root: Path, split: str, name: str = "imagefolder") -> FileSource:
    """Open root/split/class/**/*.jpg (and the other usual endings), sorted by path.

    Labels are the positions of the class folders in alphabetical order, as torchvision's
    ImageFolder counts them; a class folder without images keeps its place.
    Raises UserError for a missing split, no class folders and no images.
    """
    folder = _split_folder(root, split)
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not _is_hidden(p.name))
    if not classes:
        loose = any(p.suffix.lower() in EXTENSIONS for p in folder.iterdir())
        found = "images but no class folders" if loose else "no class folders"
        raise UserError(
            f"{folder} holds {found}.",
            f"Needed: {folder.name}/CLASS/IMAGE.jpg, one folder a class.",
        )
    files: list[Path] = []
    labels: list[int] = []
    for index, cls in enumerate(classes):
        images = _images_below(folder / cls)
        files += images
        labels += [index] * len(images)
    if not files:
        raise UserError(
            f"{folder} has {len(classes)} class folders and no images in them.",
            f"Known endings: {', '.join(EXTENSIONS)}.",
        )
    return FileSource(name, split, root, files, labels, classes)


def open_imagenet(root: Path, split: str) -> FileSource:
    """Open root/split/n01440764/*.JPEG: class folders named by WordNet id.

    The alphabetical order of the ids is the order of the logits of the published models.
    """
    source = open_folder(root, split, "imagenet")
    strange = [cls for cls in source.classes if not _WORDNET_ID.fullmatch(cls)]
    if strange:
        raise UserError(
            f'{root / split} has the class folder "{strange[0]}", which is no WordNet id.',
            'Use source = "imagefolder" for folders with other names.',
        )
    return source


def _split_folder(root: Path, split: str) -> Path:
    folder = root / split
    if folder.is_dir():
        return folder
    if not root.is_dir():
        raise UserError(f"{root} is not a folder.")
    found = [p.name for p in root.iterdir() if p.is_dir() and not _is_hidden(p.name)]
    hint = nearest(split, found) if found else "It holds no folders."
    raise UserError(f'{root} has no folder for the split "{split}".', hint)


def _images_below(folder: Path) -> list[Path]:
    found: list[Path] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        found += [
            Path(place, name)
            for name in names
            if name.lower().endswith(EXTENSIONS) and not _is_hidden(name)
        ]
    return sorted(found)


def _is_hidden(name: str) -> bool:
    # macOS leaves "._photo.jpg" beside the photos it copies; those are not images.
    return name.startswith(".")
