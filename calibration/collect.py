"""One pass over the images: decode, run, observe, in memory that the images do not grow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
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

# Bytes of observed activations in memory at a time.
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

    method: str = "percentile"
    percentile: float = 99.99
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
    """Runs batches and hands each output to its tensor's observer, in a pool of threads."""

    def __init__(self, model: Path, names: Sequence[str], config: CalibrateConfig) -> None:
        self._observers = {name: TensorObserver(name) for name in names}
        self._input, self.fixed_batch = graph_input(model)
        if self.fixed_batch not in (None, 1):
            raise UserError(
                f"{model} takes batches of exactly {self.fixed_batch} images.",
                "Export it again with a dynamic batch.",
            )
        outputs = [name for name in names if name != self._input]
        threads = config.threads or usable_cores()
        runtime = RuntimeConfig(threads=threads)
        self._session = open_session(with_outputs(model, outputs), runtime) if outputs else None
        self._pool = ThreadPoolExecutor(threads, "observe")
        self._pending: list[Future[None]] = []

    def observe(self, inputs: Batch) -> int:
        """Run one batch and start observing it; returns the bytes of what is observed.

        The batch before it is observed while this one runs.
        """
        found: dict[str, Batch] = {self._input: inputs}
        if self._session is not None:
            found.update(zip(self._session.output_names, self._session.run(inputs), strict=True))
        self.wait()
        observed = [(observer, found[name]) for name, observer in self._observers.items()]
        # Large ones first: the pool ends evenly.
        observed.sort(key=lambda pair: -pair[1].size)
        self._pending = [self._pool.submit(one.observe, values) for one, values in observed]
        return sum(values.nbytes for _, values in observed)

    def wait(self) -> None:
        """Wait until all that was started is observed; raises what an observer raised."""
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()

    def statistics(self) -> dict[str, TensorStatistics]:
        """Return what was seen, by tensor."""
        self.wait()
        return {name: observer.statistics for name, observer in self._observers.items()}

    def close(self) -> None:
        """Stop the threads and give the session's memory back."""
        self._pool.shutdown(cancel_futures=True)
        if self._session is not None:
            self._session.close()


def _observe_all(
    collector: _Collector,
    source: ImageSource,
    selection: Selection,
    spec: InputSpec,
    config: CalibrateConfig,
    progress: Progress | None,
) -> None:
    """Observe the first image alone: its activations say how many fit in memory at a time."""
    indices, done = selection.indices, 0
    batch = 1
    while done < len(indices):
        part = indices[:1] if done == 0 else indices[1:]
        for inputs in _ahead(batches(source, spec, batch, part)):
            size = collector.observe(inputs)
            done += len(inputs)
            if progress:
                progress("calibrate", done, len(indices))
            if done == 1 and collector.fixed_batch is None:
                fits = _ACTIVATION_BYTES // (2 * size)
                batch = config.batch or max(1, min(_LARGEST_BATCH, fits))


def _ahead(source: Iterator[tuple[Batch, object]]) -> Iterator[Batch]:
    """Yield the inputs of each batch while a thread prepares the next one."""
    with ThreadPoolExecutor(1, "decode") as pool:
        following = pool.submit(next, source, None)
        while (ready := following.result()) is not None:
            following = pool.submit(next, source, None)
            yield ready[0]


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
