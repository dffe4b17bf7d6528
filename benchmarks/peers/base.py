"""What every tool gets and hands back: one job, one file, and how much making it took."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploy_tools.data import open_source
from deploy_tools.data.source import ImageSource, batches
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import DeployToolsError, UserError
from deploy_tools.recipe import InputTable, ModelTable

if TYPE_CHECKING:
    from torch import nn

EXTRA = "peers"
"""The extra that installs the tools beside ours; ModelOpt has an environment of its own."""


class PeerError(DeployToolsError):
    """A tool that is installed did not make its file; the message is the tool's own reason."""


@dataclass(frozen=True)
class PeerFile:
    """A quantized model and what it cost.

    seconds: of the call, the tool imported before. cpu_seconds: of all its threads and of the
    processes it started; unlike seconds, other work on the machine hardly changes it.
    peak_rss_bytes: the most resident memory of the process that did nothing else, interpreter and
    libraries included. file_bytes: of the model, with the weights where they lie in a file of
    their own.
    """

    path: Path
    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    file_bytes: int


@dataclass(frozen=True)
class Images:
    """Preprocessed batches, decoded anew each time they are gone through.

    Yields float32 of shape (<= batch, C, H, W).
    """

    source: ImageSource
    spec: InputSpec
    batch: int
    indices: tuple[int, ...]

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        for inputs, _ in batches(self.source, self.spec, self.batch, self.indices):
            yield inputs

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch)


@dataclass(frozen=True)
class Job:
    """The same work for every tool: a model and its calibration images.

    model: the FP32 ONNX file. origin: the checkpoint behind it, for tools that take a torch
    module. source, root, split, indices: the calibration images. held_out: images of the same
    split and none of `indices`, for tools that check themselves; never evaluation images.
    """

    model: Path
    spec: InputSpec
    source: str
    root: Path | None
    split: str
    indices: tuple[int, ...]
    held_out: tuple[int, ...] = ()
    origin: ModelTable | None = None

    def __post_init__(self) -> None:
        if self.spec.takes_pixels:
            raise UserError(
                f"{self.model} takes uint8 pixels.", "Give every tool the float file instead."
            )
        if not self.indices:
            raise UserError("a job without calibration images.", "Choose at least one image.")
        if set(self.indices) & set(self.held_out):
            raise UserError("held-out images are calibration images too.", "Choose others.")

    def open(self) -> ImageSource:
        """Open the split that the calibration images come from."""
        return open_source(self.source, self.root, self.split)

    def images(self, batch: int = 1) -> Images:
        """Return the calibration images in batches."""
        return Images(self.open(), self.spec, batch, self.indices)

    def module(self) -> nn.Module:
        """Load the torch module that `model` was exported from, its BatchNorms folded.

        Raises UserError where the job has no checkpoint.
        """
        from deploy_tools.pipeline.model import fold_model, load_model

        if self.origin is None:
            raise UserError("this tool quantizes a torch module and the job names no checkpoint.")
        given = InputTable(size=self.spec.size, mean=self.spec.mean, std=self.spec.std)
        return fold_model(load_model(self.origin, given))[0].eval()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, which `from_dict` reads."""
        values = {name: getattr(self, name) for name in ("source", "split")}
        return values | {
            "model": str(self.model),
            "spec": self.spec.to_dict(),
            "root": None if self.root is None else str(self.root),
            "indices": list(self.indices),
            "held_out": list(self.held_out),
            "origin": None if self.origin is None else asdict(self.origin),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Job:
        """Read what `to_dict` returned."""
        root, origin = values["root"], values["origin"]
        return cls(
            model=Path(values["model"]),
            spec=InputSpec.from_dict(values["spec"]),
            source=values["source"],
            root=None if root is None else Path(root),
            split=values["split"],
            indices=tuple(values["indices"]),
            held_out=tuple(values["held_out"]),
            origin=None if origin is None else ModelTable(**origin),
        )
