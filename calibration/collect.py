"""One pass over the images: decode, run, observe, in memory that the images do not grow."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.augment import graph_input, with_outputs
from calibration.identity import RangeIdentity, StatisticsIdentity
from calibration.methods import GRIDS, clipped_share, method_named, range_for
from calibration.observers import TensorObserver, TensorStatistics
from calibration.select import Selection
from calibration.statistics import Statistics
from calibration.table import RangeTable, TensorRange
from deploy_tools.artifacts import sha256_of_file
from deploy_tools.data.source import ImageSource, batches
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import UserError
from deploy_tools.runtimes import RuntimeConfig, open_session
from deploy_tools.runtimes.base import usable_cores
from deploy_tools.version import __version__

Progress = Callable[[str, int, int], None]
Batch = NDArray[np.float32]

# Bytes of observed activations in memory at a time, over all workers.
_ACTIVATION_BYTES = 256 << 20
_LARGEST_BATCH = 32


@dataclass(frozen=True)
class CalibrateConfig:
    """How to choose ranges.

    method: "minmax", "percentile", "entropy" or "mse".
    percentile: the share in percent that the method of that name keeps.
    batch: images at a time; 0 takes what keeps the activations under 256 MB.
    threads: 0 takes every core this process may use.
    """

    method: str = "mse"
    percentile: float = 99.999
    batch: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        method_named(self.method)
        if not 50.0 < self.percentile <= 100.0:
            raise UserError(
                f"calibration percentile must lie in (50, 100], got {self.percentile:g}.",
                "99.99 keeps all but one value in ten thousand.",
            )
        for key, value in (("batch", self.batch), ("threads", self.threads)):
            if value < 0:
                raise UserError(f"calibration {key} must not be negative, got {value}.")

    @property
    def settings(self) -> dict[str, float]:
        """The settings that the chosen method takes."""
        values = {"percentile": self.percentile}
        return {key: values[key] for key in method_named(self.method).SETTINGS}


def expected_identity(
    model_sha256: str,
    tensors: Iterable[str],
    selection: Selection,
    spec: InputSpec,
    config: CalibrateConfig,
) -> RangeIdentity:
    """Return the identity that a table made from all this would have (for `require_fresh`)."""
    statistics = StatisticsIdentity.of(model_sha256, selection.content_hash, spec, tensors)
    return RangeIdentity(statistics, config.method, config.settings)


def ranges_from_images(
    model: Path,
    tensors: Iterable[str],
    source: ImageSource,
    selection: Selection,
    spec: InputSpec,
    config: CalibrateConfig | None = None,
    progress: Progress | None = None,
) -> RangeTable:
    """Run the chosen images through the FP32 model and choose a range for each tensor and grid."""
    config = config or CalibrateConfig()
    statistics = statistics_from_images(model, tensors, source, selection, spec, config, progress)
    return ranges_from_statistics(statistics, config, progress)


def ranges_from_statistics(
    statistics: Statistics,
    config: CalibrateConfig | None = None,
    progress: Progress | None = None,
) -> RangeTable:
    """Choose a range for each tensor and grid, without a new pass over the images."""
    config = config or CalibrateConfig()
    tensors = {}
    for done, (name, seen) in enumerate(statistics.tensors.items(), start=1):
        tensors[name] = _range_of(seen, config)
        if progress:
            progress("choose ranges", done, len(statistics.tensors))
    return RangeTable(
        identity=RangeIdentity(statistics.identity, config.method, config.settings),
        images=statistics.images,
        input_spec=statistics.input_spec,
        tool=__version__,
        tensors=tensors,
    )


def statistics_from_images(
    model: Path,
    tensors: Iterable[str],
    source: ImageSource,
    selection: Selection,
    spec: InputSpec,
    config: CalibrateConfig | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Observe `tensors` of an FP32 ONNX file on the chosen images, in one pass.

    tensors: names of activations; the model's input may be one of them.
    Raises UserError for an unknown tensor and, naming it, for one with NaN or infinite values.
    """
    config = config or CalibrateConfig()
    names = list(dict.fromkeys(tensors))
    if not names:
        raise UserError("no tensors to calibrate.", "The model has nothing that is quantized.")
    with closing(_Collector(model, names, config)) as collector:
        _observe_all(collector, source, selection, spec, config, progress)
        seen = collector.statistics()
    identity = StatisticsIdentity.of(sha256_of_file(model), selection.content_hash, spec, names)
    return Statistics(identity, len(selection), spec.to_json(), seen)


class _Collector:
    """Runs batches side by side, each on one core, and keeps one set of observers a worker.

    One thread a run and several runs at a time: a run with several threads would fight the
    observers for the cores, and its threads spin while they wait. The sets are merged at the
    end, which is exact, so the number of workers changes nothing.
    """

    def __init__(self, model: Path, names: Sequence[str], config: CalibrateConfig) -> None:
        self._names = tuple(names)
        self._threads = config.threads or usable_cores()
        self._input, self._fixed_batch = graph_input(model)
        if self._fixed_batch not in (None, 1):
            raise UserError(
                f"{model} takes batches of exactly {self._fixed_batch} images.",
                "Export it again with a dynamic batch.",
            )
        outputs = [name for name in names if name != self._input]
        one = RuntimeConfig(threads=1)
        self._session = open_session(with_outputs(model, outputs), one) if outputs else None
        self._idle: queue.SimpleQueue[dict[str, TensorObserver]] = queue.SimpleQueue()
        self._sets: list[dict[str, TensorObserver]] = []
        self._add_worker()

    def observe(self, inputs: Batch) -> int:
        """Run one batch and observe it; returns the bytes of what was observed."""
        observers = self._idle.get()
        try:
            return self._observe(observers, inputs)
        finally:  # on an error too: another worker may be waiting for this set
            self._idle.put(observers)

    def _observe(self, observers: Mapping[str, TensorObserver], inputs: Batch) -> int:
        """A function of its own: its arrays are gone before the next batch may start."""
        found: list[tuple[str, Batch]] = []
        if self._session is not None:
            found += zip(self._session.output_names, self._session.run(inputs), strict=True)
        if self._input in observers:
            found.append((self._input, inputs))
        size = sum(values.nbytes for _, values in found)
        while found:  # each array is given back as soon as it is observed
            name, values = found.pop()
            observers[name].observe(values)
        return size

    def observe_all(self, source: Iterable[Batch], workers: int) -> Iterator[int]:
        """Observe every batch, `workers` at a time; yields the number of images of each."""
        while len(self._sets) < workers:
            self._add_worker()
        pool = ThreadPoolExecutor(workers, "calibrate")
        pending: deque[tuple[int, Future[int]]] = deque()
        try:
            for inputs in source:
                pending.append((len(inputs), pool.submit(self.observe, inputs)))
                if len(pending) > workers:
                    yield _finished(*pending.popleft())
            while pending:
                yield _finished(*pending.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def plan(self, bytes_per_image: int, batch: int) -> tuple[int, int]:
        """Return (batch, workers) that keep the activations in memory under the limit.

        batch: what the user asked for, 0 for what fits.
        """
        if self._fixed_batch is not None:
            batch = 1
        fits = max(1, _ACTIVATION_BYTES // max(bytes_per_image, 1))
        workers = max(1, min(self._threads, fits // max(batch, 1)))
        return batch or max(1, min(_LARGEST_BATCH, fits // workers)), workers

    def statistics(self) -> dict[str, TensorStatistics]:
        """Return what all workers saw, by tensor."""
        return {
            name: reduce(TensorStatistics.merge, (one[name].statistics for one in self._sets))
            for name in self._names
        }

    def close(self) -> None:
        """Give the session's memory back."""
        if self._session is not None:
            self._session.close()

    def _add_worker(self) -> None:
        self._sets.append({name: TensorObserver(name) for name in self._names})
        self._idle.put(self._sets[-1])


def _finished(images: int, future: Future[int]) -> int:
    future.result()
    return images


def _observe_all(
    collector: _Collector,
    source: ImageSource,
    selection: Selection,
    spec: InputSpec,
    config: CalibrateConfig,
    progress: Progress | None,
) -> None:
    """Observe the first image alone: its activations say how many fit in memory at a time."""
    indices = selection.indices
    first = next(batches(source, spec, 1, indices[:1]))[0]
    batch, workers = collector.plan(collector.observe(first), config.batch)
    rest = (inputs for inputs, _ in batches(source, spec, batch, indices[1:]))
    done = 1
    if progress:
        progress("calibrate", done, len(indices))
    for images in collector.observe_all(rest, workers):
        done += images
        if progress:
            progress("calibrate", done, len(indices))


def _range_of(seen: TensorStatistics, config: CalibrateConfig) -> TensorRange:
    ranges = {grid: range_for(seen, grid, config.method, config.settings) for grid in GRIDS}
    return TensorRange(
        low=seen.low,
        high=seen.high,
        count=seen.count,
        zero_share=seen.zero_share,
        ranges=ranges,
        clipped={grid: clipped_share(seen, bounds) for grid, bounds in ranges.items()},
    )
