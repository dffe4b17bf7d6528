"""Ranges by what they do to the logits: for each tensor and grid the best of several methods.

A method looks at one tensor's histogram; which of its errors the network forgives it cannot know.
Here each candidate range is tried in the network, on images that the histograms do not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy_tools.errors import UserError
from deploy_tools.onnx_files import load_onnx
from deploy_tools.quantization.prepare import prepared
from deploy_tools.quantization.static import Ranges, activation_tensors
from deploy_tools.sensitivity.figures import clearly_more, noise_by_image
from deploy_tools.sensitivity.grids import Grid, grid_of
from deploy_tools.sensitivity.partial import TensorTrial, WholeTrial
from deploy_tools.sensitivity.run import Work, run_trials

Values = NDArray[np.float32]
Progress = Callable[[str, int, int], None]

GRIDS = ("u8", "s8")
EVERY = 4
"""One calibration image in so many is held out of the histograms."""
_CLEARLY = 1.0  # standard errors; 2 cost 0.6 dB with 64 held-out images of Fashion-MNIST
_NOTHING = np.zeros(1)
_WHOLE = ":whole"


@dataclass(frozen=True)
class AutoRangesConfig:
    """grids: those to choose for. work: where the trials run.

    images: how many are used at most; few are enough, since all candidates meet the same ones.
    """

    grids: tuple[str, ...] = GRIDS
    images: int = 64
    work: Work = field(default_factory=Work)


def split_held_out(
    indices: Sequence[int], every: int = EVERY
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Split calibration images, by position: (for the histograms, held out: every fourth).

    Raises UserError where that leaves one of the two empty.
    """
    held = tuple(indices[every - 1 :: every])
    kept = tuple(index for place, index in enumerate(indices) if place % every != every - 1)
    if not held or not kept:
        raise UserError(
            f"{len(indices)} calibration images cannot be split: one in {every} is held out to "
            'choose with, by ranges = "auto" and by bias correction that was not asked for.',
            f"Use at least {every} images, or choose ranges and bias correction yourself.",
        )
    return kept, held


def auto_ranges(
    model: Path,
    candidates: Mapping[str, Ranges],
    images: Callable[[], Iterable[Values]],
    config: AutoRangesConfig | None = None,
    progress: Progress | None = None,
    total: int = 0,
) -> dict[str, dict[str, str]]:
    """Return tensor -> grid -> the name of the candidate whose range errs least.

    That is the first candidate where no other errs clearly less, image by image.

    The error of a range: the energy of the logits' difference from the float model's, with that
    one tensor on the range's grid. candidates: range tables of the same file by name. images: gives a pass over `total` preprocessed images in batches (n, C, H, W):
    held-out calibration images, never those that judge. Raises UserError without candidates or
    images.
    """
    config = config or AutoRangesConfig()
    if not candidates:
        raise UserError("there are no ranges to choose from.")
    proto = prepared(load_onnx(model))
    tried = {
        (tensor, kind): _distinct(tensor, kind, candidates)
        for tensor in activation_tensors(proto)
        for kind in config.grids
    }
    trials = [
        TensorTrial(_name(tensor, kind, name), tensor, grid)
        for (tensor, kind), grids in tried.items()
        for name, grid in grids.items()
        if len(grids) > 1  # else there is nothing to choose
    ]

    def tell(done: int) -> None:
        if progress:
            progress("auto ranges", done, min(total, config.images))

    few = _first(images(), config.images)
    logits = run_trials(proto, [WholeTrial(_WHOLE), *trials], few, config.work, tell)
    reference = logits.pop(_WHOLE)
    noise = {name: noise_by_image(reference, found) for name, found in logits.items()}
    chosen: dict[str, dict[str, str]] = {}
    for (tensor, kind), grids in tried.items():
        errors = {name: noise.get(_name(tensor, kind, name), _NOTHING) for name in grids}
        chosen.setdefault(tensor, {})[kind] = _best(errors)
    return chosen


def _best(errors: Mapping[str, NDArray[np.float64]]) -> str:
    """Return the name of the least mean error of those clearly below the first; else the first."""
    first, *others = errors
    better = [name for name in others if clearly_more(errors[first], errors[name], _CLEARLY)]
    return min(better, key=lambda name: float(errors[name].mean()), default=first)


def _first(images: Iterable[Values], count: int) -> Iterator[Values]:
    """Yield the first `count` images, in the batches that they come in."""
    for batch in images:
        if count <= 0:
            return
        yield batch[:count]
        count -= len(batch)


def _distinct(tensor: str, kind: str, candidates: Mapping[str, Ranges]) -> dict[str, Grid]:
    """Return the grid of each candidate, without those that repeat an earlier one."""
    grids: dict[str, Grid] = {}
    for name, ranges in candidates.items():
        grid = grid_of(*ranges.range_of(tensor, kind), kind)
        if grid not in grids.values():
            grids[name] = grid
    return grids


def _name(tensor: str, kind: str, candidate: str) -> str:
    return f"{tensor}|{kind}|{candidate}"
