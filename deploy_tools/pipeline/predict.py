"""Classes of many image files, one after the other, in memory that does not grow with them."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy_tools.data.decode import load_input
from deploy_tools.data.spec import InputSpec
from deploy_tools.data.stream import Outcome, in_order
from deploy_tools.errors import UserError
from deploy_tools.runtimes import Session
from deploy_tools.runtimes.base import usable_cores


@dataclass(frozen=True)
class PredictConfig:
    """How to classify files.

    top: how many classes to name. batch: images a call; one that cannot be read takes its place
    in a batch but is not run. decoder: one of `data.decode.DECODERS`. workers: threads that
    decode while the model runs; 0 takes every core.
    Raises UserError for a value that is too small.
    """

    top: int = 3
    batch: int = 8
    decoder: str = "scaled"
    workers: int = 0

    def __post_init__(self) -> None:
        for key, least in (("top", 1), ("batch", 1), ("workers", 0)):
            if getattr(self, key) < least:
                raise UserError(f"{key} must be at least {least}, got {getattr(self, key)}.")


@dataclass(frozen=True)
class Prediction:
    """One file's most probable classes, the first one first, or why there are none.

    classes: {"class": index, "label": text, "probability": in [0, 1]} each.
    """

    path: Path
    classes: tuple[dict[str, Any], ...] = ()
    error: UserError | None = None


def predict_files(
    session: Session, spec: InputSpec, paths: Iterable[Path], config: PredictConfig
) -> Generator[Prediction, None, None]:
    """Yield one Prediction a path, in their order, as batches are done.

    Decoding runs in threads, at most two batches ahead of the model. A file that cannot be
    decoded or does not fit the spec gives a Prediction with its error. Closing the iterator stops
    the threads.
    """
    make = partial(load_input, spec=spec, decoder=config.decoder)
    workers = config.workers or usable_cores()
    ahead = max(2 * config.batch, workers)
    with contextlib.closing(in_order(paths, make, workers, ahead)) as outcomes:
        while chunk := list(islice(outcomes, config.batch)):
            yield from _predictions(session, spec, chunk, config.top)


def _predictions(
    session: Session, spec: InputSpec, chunk: Sequence[Outcome[NDArray[Any]]], top: int
) -> Iterator[Prediction]:
    inputs = [outcome.value for outcome in chunk if outcome.value is not None]
    rows = iter(_logits(session, spec, np.stack(inputs)) if inputs else ())
    for outcome in chunk:
        if outcome.value is None:
            yield Prediction(outcome.path, error=outcome.error)
        else:
            yield Prediction(outcome.path, _most_probable(next(rows), spec.labels, top))


def _logits(session: Session, spec: InputSpec, inputs: NDArray[Any]) -> NDArray[np.float64]:
    names = session.output_names
    output = names.index(spec.output_name) if spec.output_name in names else 0
    return session.run(inputs)[output].astype(np.float64)


def _most_probable(
    logits: NDArray[np.float64], labels: Sequence[str], top: int
) -> tuple[dict[str, Any], ...]:
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    return tuple(
        {
            "class": int(i),
            "label": labels[i] if i < len(labels) else str(i),
            "probability": round(float(shares[i]), 6),
        }
        for i in np.argsort(-logits, kind="stable")[:top]
    )
