"""From image file to label: decoding and preprocessing are part of what is timed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy_tools.data.files import FileSource
from deploy_tools.data.preprocess import preprocess
from deploy_tools.data.source import ImageSource
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import UserError
from deploy_tools.runtimes import Session

Prepare = Callable[[int], NDArray[Any]]


class PathToLabel:
    """A session whose call takes image files and gives labels.

    It is timed in place of the session it holds. Files are read at every call, from the system's
    page cache after the first round; each call takes the next ones of the source, in its order
    and from its start again after the last. A slot begins at an image that follows from its number
    alone: slots end by time, and so all variants see the same images in a round, but for the last
    ones, which a slow variant does not reach.
    prepare(i): makes image i of the source the model's input (C, H, W); by default decoding with
    Pillow and `preprocess`, as in evaluation. Raises UserError for a source without files.
    """

    end_to_end = True

    def __init__(
        self,
        session: Session,
        spec: InputSpec,
        source: ImageSource,
        prepare: Prepare | None = None,
    ) -> None:
        require_files(source)
        self._session, self._spec, self._source = session, spec, source
        self._prepare = prepare or self._decode
        self._start, self._calls = 0, itertools.count()
        names = session.output_names
        self._output = names.index(spec.output_name) if spec.output_name in names else 0
        self.runtime, self.provider = session.runtime, session.provider
        self.threads, self.precision = session.threads, session.precision
        self.streams = getattr(session, "streams", 1)
        self.input_name = session.input_name
        self.output_names: tuple[str, ...] = ("label",)

    def run(self, inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Classify as many of the next images as `inputs` has rows; returns their labels."""
        first = self._start + next(self._calls) * len(inputs)
        chosen = [(first + row) % len(self._source) for row in range(len(inputs))]
        batch = np.stack([self._prepare(index) for index in chosen])
        return (self._session.run(batch)[self._output].argmax(axis=1),)

    def begin_slot(self, number: int) -> None:
        """Go to the first image of a slot; those of many slots are spread over the source."""
        # Steps of the golden section: no two slots of a few begin near each other.
        self._start = number * max(round(0.618 * len(self._source)), 1) % len(self._source)
        self._calls = itertools.count()

    def close(self) -> None:
        """Close the session that it holds."""
        self._session.close()

    def _decode(self, index: int) -> NDArray[np.float32]:
        return preprocess(self._source.load(index), self._spec, self._source.image_id(index))


def require_files(source: ImageSource) -> None:
    """Raise UserError where a source's images are no files: there would be nothing to decode."""
    if not isinstance(source, FileSource):
        raise UserError(
            f"the images of {source.name} are in memory: there are no files to decode.",
            "End to end needs imagefolder, imagenet or jsonl.",
        )


def rows_of(count: int) -> NDArray[np.int64]:
    """Return what `measure_speed` hands to `PathToLabel.run` for a call of `count` images."""
    return np.arange(count)
