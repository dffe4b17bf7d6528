"""Trials over images: chunk by chunk in bounded memory, spread over workers on request."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from deploy_tools.errors import UserError
from deploy_tools.runtimes.base import usable_cores
from deploy_tools.sensitivity.partial import BATCH, PartialRuns, Trial
from deploy_tools.sensitivity.workers import map_tasks

Values = NDArray[np.float32]
Progress = Callable[[str, int, int], None]

_ALIVE_BYTES = 256 << 20


@dataclass(frozen=True)
class Work:
    """Where trials run. engine, workers: as `map_tasks` takes them.

    threads: of each worker; 0 shares the cores of this process out among its workers.
    The results do not depend on any of these.
    """

    engine: str = "processes"
    workers: int = 1
    threads: int = 0

    @property
    def threads_each(self) -> int:
        """Return the threads of one worker."""
        return self.threads or max(1, usable_cores() // self.workers)


@dataclass(frozen=True)
class _Task:
    """One group of trials on one chunk of images (N, C, H, W).

    every: all trials, which set the cuts.
    """

    model: bytes
    every: tuple[Trial, ...]
    group: tuple[Trial, ...]
    images: Values
    threads: int


def run_trials(
    proto: onnx.ModelProto,
    trials: Sequence[Trial],
    images: Iterable[Values],
    work: Work | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Values]:
    """Return the logits (N, C) of every trial, by name.

    images: preprocessed batches (n, C, H, W), read once; of those only a chunk is in memory, as
    large as 256 MB of live tensors allow. progress: told how many images are done.
    Raises UserError where there are no images, and what `PartialRuns` and `map_tasks` raise.
    """
    work = work or Work()
    first, batches = _first(images)
    size = _chunk_size(PartialRuns(proto, trials, 1).bytes_alive(first))
    model = proto.SerializeToString()
    groups = _groups(trials, work.workers)
    sizes: list[int] = []

    def tasks() -> Iterator[_Task]:
        for chunk in _chunks(batches, size):
            sizes.append(len(chunk))
            for group in groups:
                yield _Task(model, tuple(trials), group, chunk, work.threads_each)

    found: dict[str, list[Values]] = {trial.name: [] for trial in trials}
    results = map_tasks(_run, tasks(), work.engine, work.workers)
    for number, part in enumerate(results, start=1):
        for name, logits in part.items():
            found[name].append(logits)
        if progress and number % len(groups) == 0:
            progress(sum(sizes[: number // len(groups)]))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _run(task: _Task) -> dict[str, Values]:
    proto = onnx.ModelProto.FromString(task.model)
    return PartialRuns(proto, task.every, task.threads).logits(task.images, task.group)


def _groups(trials: Sequence[Trial], workers: int) -> list[tuple[Trial, ...]]:
    """Deal the trials out like cards: neighbours cost alike, so each worker gets its share."""
    groups = [tuple(trials[start::workers]) for start in range(workers)]
    return [group for group in groups if group]


def _first(images: Iterable[Values]) -> tuple[Values, Iterator[Values]]:
    """Return the first image (1, C, H, W), and all batches."""
    batches = iter(images)
    batch = next(batches, None)
    if batch is None or not len(batch):
        raise UserError("there are no images to measure on.")

    def every() -> Iterator[Values]:
        yield batch
        yield from batches

    return batch[:1], every()


def _chunk_size(bytes_an_image: int) -> int:
    """Return how many images fit, a multiple of the batch."""
    return max(1, math.floor(_ALIVE_BYTES / max(bytes_an_image, 1) / BATCH)) * BATCH


def _chunks(batches: Iterable[Values], size: int) -> Iterator[Values]:
    """Regroup batches of any size into chunks of `size` images; the last may be smaller."""
    waiting: list[Values] = []
    for batch in batches:
        waiting.append(batch)
        while sum(map(len, waiting)) >= size:
            joined = np.concatenate(waiting)
            yield joined[:size]
            waiting = [joined[size:]] if len(joined) > size else []
    if waiting:
        yield np.concatenate(waiting)
