"""The calibration images of a run, as the stages take them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.select import Selection
from deploy_tools.data.source import ImageSource, batches
from deploy_tools.data.spec import InputSpec
from deploy_tools.runtimes import RuntimeConfig, open_session
from deploy_tools.sensitivity.auto_ranges import split_held_out

_BATCH_VALUES = 4 << 20
"""Input values of a batch: 32 photos of 224 x 224, 250 of CIFAR's images at most."""


@dataclass(frozen=True)
class CalibrationImages:
    """Chosen images of a source, preprocessed when they are read.

    input_spec: gives the model's input spec; called when it is first needed, since in a dry run
        there may be no file to read it from.
    """

    source: ImageSource
    selection: Selection
    input_spec: Callable[[], InputSpec]

    @property
    def spec(self) -> InputSpec:
        """The model's input spec."""
        return self.input_spec()

    def __call__(self) -> Iterable[NDArray[np.float32]]:
        """Return a new pass over the images in batches (N, C, H, W), always in the same order.

        Shuffled: a selection is sorted, in a folder a class by class, and some corrections read
        only the first images. The order depends on the images alone, as the stages' keys do.
        """
        height, width = self.spec.size
        size = max(1, min(250, _BATCH_VALUES // (3 * height * width)))
        generator = np.random.Generator(np.random.PCG64(int(self.selection.content_hash, 16)))
        order = generator.permutation(np.array(self.selection.indices, np.int64)).tolist()
        for images, _ in batches(self.source, self.spec, size, order):
            yield images

    def __len__(self) -> int:
        return len(self.selection)

    def split(self) -> tuple[CalibrationImages, CalibrationImages]:
        """Return the images to learn from, and every fourth, held out to choose with."""
        kept, held = split_held_out(range(len(self.selection)))
        return self._part(kept), self._part(held)

    def _part(self, places: Sequence[int]) -> CalibrationImages:
        chosen = self.selection
        part = replace(
            chosen,
            indices=tuple(chosen.indices[p] for p in places),
            ids=tuple(chosen.ids[p] for p in places),
            sha256=tuple(chosen.sha256[p] for p in places),
        )
        return replace(self, selection=part)


def logits_of(model: Path, images: CalibrationImages, exact: bool) -> NDArray[np.float32]:
    """Return (N, classes), in onnxruntime; exact: the file's own arithmetic, without fusions."""
    session = open_session(model, RuntimeConfig("onnxruntime", fusions=not exact))
    try:
        return np.concatenate([session.run(batch)[0] for batch in images()])
    finally:
        session.close()
