"""From image file to label while the next images are decoded: `PathToLabel` for all cores."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.end_to_end import require_files
from deploy_tools.data.files import FileSource
from deploy_tools.data.stream import in_order
from deploy_tools.errors import UserError
from deploy_tools.runtimes import Session

Decode = Callable[[Path], NDArray[Any]]


class Overlapped:
    """A session whose call takes image files and gives labels, decoding ahead of the model.

    decode: from a file to the model's input, without the batch axis. batch: images a call of the
    session. workers: threads that decode, at most two batches ahead. As with `PathToLabel` each
    call takes the next images of the source, in its order and from its start again after the last.
    Raises UserError for a source without files; what decoding raises ends the call.
    """

    end_to_end = True

    def __init__(
        self, session: Session, source: FileSource, decode: Decode, batch: int, workers: int
    ) -> None:
        require_files(source)
        if batch < 1 or workers < 1:
            raise UserError(f"batch and workers must be at least 1, got {batch} and {workers}.")
        self._session, self._source, self._decode = session, source, decode
        self._batch, self._workers = batch, workers
        self._calls = itertools.count()
        self.runtime, self.provider = session.runtime, session.provider
        self.threads, self.precision = session.threads, session.precision
        self.streams = 1
        self.input_name = session.input_name
        self.output_names: tuple[str, ...] = ("label",)

    def run(self, inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Classify as many of the next images as `inputs` has rows; returns their labels."""
        first = next(self._calls) * len(inputs)
        places = ((first + row) % len(self._source) for row in range(len(inputs)))
        paths = [self._source.path(place) for place in places]
        ahead = max(2 * self._batch, self._workers)
        labels: list[NDArray[Any]] = []
        with contextlib.closing(in_order(paths, self._decode, self._workers, ahead)) as done:
            while chunk := list(itertools.islice(done, self._batch)):
                for outcome in chunk:
                    if outcome.error is not None:
                        raise outcome.error
                batch = np.stack([each.value for each in chunk if each.value is not None])
                labels.append(self._session.run(batch)[0].argmax(axis=1))
        return (np.concatenate(labels),)

    def close(self) -> None:
        """Close the session that it holds."""
        self._session.close()
