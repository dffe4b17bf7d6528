"""Which images calibration looks at: chosen by seed or by list, and recorded by content."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy_tools.artifacts import write_json
from deploy_tools.data.source import ImageSource
from deploy_tools.data.splits import stratified_choice
from deploy_tools.errors import ArtifactError, UserError, nearest

CHOICES = ("stratified", "random", "list")
FILE = "selection.json"
_SCHEMA = 1


@dataclass(frozen=True)
class SelectConfig:
    """How to choose calibration images.

    images: how many; ignored for a list, whose length counts.
    choose: "stratified" gives each class its share, "random" draws from all images,
        "list" takes the image ids in `list`.
    list: image ids, or a text file with one id a line; only with choose = "list".
    """

    images: int = 512
    choose: str = "stratified"
    seed: int = 0
    list: tuple[str, ...] | Path | None = None

    def __post_init__(self) -> None:
        if self.choose not in CHOICES:
            raise UserError(
                f'calibration choose "{self.choose}" is not known.', nearest(self.choose, CHOICES)
            )
        if self.images < 1:
            raise UserError(f"calibration images must be at least 1, got {self.images}.")
        if self.seed < 0:
            raise UserError(f"calibration seed must not be negative, got {self.seed}.")
        if (self.choose == "list") != (self.list is not None):
            raise UserError(
                'calibration choose = "list" and a list of image ids belong together.',
                'Give both, or choose "stratified" or "random".',
            )


@dataclass(frozen=True)
class Selection:
    """The chosen images, in the order of the source.

    sha256: one content hash an image; equal images have equal hashes whatever their names.
    """

    source: str
    split: str
    choose: str
    seed: int
    indices: tuple[int, ...]
    ids: tuple[str, ...]
    sha256: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def content_hash(self) -> str:
        """One sha256 over the images' hashes; it depends on what was chosen, not on why."""
        return hashlib.sha256("\n".join(self.sha256).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        images = [
            {"index": index, "id": name, "sha256": content}
            for index, name, content in zip(self.indices, self.ids, self.sha256, strict=True)
        ]
        return {
            "schema": _SCHEMA,
            "source": self.source,
            "split": self.split,
            "choose": self.choose,
            "seed": self.seed,
            "sha256": self.content_hash,
            "images": images,
        }

    def save(self, folder: Path) -> Path:
        """Write selection.json into `folder` (the artifact directory's calibration/)."""
        path = folder / FILE
        write_json(path, self.to_dict())
        return path

    @classmethod
    def load(cls, path: Path) -> Selection:
        """Read what `save` wrote; ArtifactError where it is damaged or does not add up."""
        try:
            values = json.loads(path.read_text("utf-8"))
            images = values["images"]
            found = cls(
                source=str(values["source"]),
                split=str(values["split"]),
                choose=str(values["choose"]),
                seed=int(values["seed"]),
                indices=tuple(int(image["index"]) for image in images),
                ids=tuple(str(image["id"]) for image in images),
                sha256=tuple(str(image["sha256"]) for image in images),
            )
            if values["schema"] != _SCHEMA or values["sha256"] != found.content_hash:
                raise ValueError("its hash does not match its images")
        except FileNotFoundError as error:
            raise ArtifactError(f"{path} does not exist.", "Run calibrate first.") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path} is damaged: {error}.", "Run calibrate again.") from error
        return found

    def __str__(self) -> str:
        how = "a list" if self.choose == "list" else f"{self.choose}, seed {self.seed}"
        first = ", ".join(self.ids[:3]) + (", ..." if len(self) > 3 else "")
        return (
            f"{len(self)} images of {self.source} {self.split} ({how}), "
            f"content {self.content_hash[:12]}: {first}"
        )


def select_images(source: ImageSource, config: SelectConfig | None = None) -> Selection:
    """Choose calibration images; the same source and config give the same images everywhere.

    Raises UserError where the split has fewer images than asked for, or a listed id is unknown.
    """
    config = config or SelectConfig()
    indices = _listed(source, config) if config.choose == "list" else _drawn(source, config)
    return Selection(
        source=source.name,
        split=source.split,
        choose=config.choose,
        seed=config.seed,
        indices=tuple(int(index) for index in indices),
        ids=tuple(source.image_id(int(index)) for index in indices),
        sha256=tuple(source.content_hash(int(index)) for index in indices),
    )


def _drawn(source: ImageSource, config: SelectConfig) -> NDArray[np.int64]:
    if config.images > len(source):
        raise UserError(
            f"calibration asks for {config.images} images and {source.name} {source.split} "
            f"has {len(source)}.",
            f"Ask for at most {len(source)}.",
        )
    if config.choose == "stratified":
        return stratified_choice(source.labels, config.images, config.seed)
    generator = np.random.Generator(np.random.PCG64(config.seed))
    return np.sort(generator.permutation(len(source))[: config.images]).astype(np.int64)


def _listed(source: ImageSource, config: SelectConfig) -> NDArray[np.int64]:
    wanted = _read_list(config.list) if isinstance(config.list, Path) else config.list or ()
    if not wanted:
        raise UserError("the list of calibration images is empty.")
    twice = [name for name, count in Counter(wanted).items() if count > 1]
    if twice:
        raise UserError(f'the list of calibration images holds "{twice[0]}" more than once.')
    known = {source.image_id(index): index for index in range(len(source))}
    for name in wanted:
        if name not in known:
            raise UserError(
                f'{source.name} {source.split} has no image "{name}".', _id_hint(name, known)
            )
    return np.sort(np.array([known[name] for name in wanted], np.int64))


def _id_hint(name: str, known: Mapping[str, int]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f'Did you mean "{close[0]}"?' if close else f'Ids look like "{next(iter(known))}".'


def _read_list(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError as error:
        raise UserError(f"{path}, the list of calibration images, does not exist.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    return tuple(line.strip() for line in lines if line.strip())
