"""What a model said about every image of a split: ids, labels and logits, kept on disk."""

from __future__ import annotations

import itertools
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy_tools.artifacts import atomic_path
from deploy_tools.data.source import ImageSource, batches, source_hash
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import ArtifactError, UserError
from deploy_tools.runtimes import Session

Progress = Callable[[str, int, int], None]

_DECODERS = 2
_BATCHES_AHEAD = 4


@dataclass(frozen=True, eq=False)
class Predictions:
    """A model's logits on labelled images.

    ids: one name an image, labels: int64 (N,), logits: float32 (N, C),
    data: sha256 over the images and labels, in order (`source_hash`).
    Raises UserError where the shapes do not fit or a logit is not finite.
    """

    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    data: str

    def __post_init__(self) -> None:
        count = len(self.ids)
        if self.logits.ndim != 2 or self.labels.shape != (count,) or len(self.logits) != count:
            raise UserError(
                f"predictions have {count} ids, labels of shape {self.labels.shape} and logits of "
                f"shape {self.logits.shape}.",
                "Logits must have shape (images, classes).",
            )
        if count and not 0 <= self.labels.min() <= self.labels.max() < self.logits.shape[1]:
            raise UserError(
                f"labels {self.labels.min()} to {self.labels.max()} do not fit "
                f"{self.logits.shape[1]} classes."
            )
        broken = np.flatnonzero(~np.isfinite(self.logits).all(axis=1))
        if len(broken):
            raise UserError(
                f"the model's logits are not finite on {len(broken)} of {count} images; the first "
                f"is {self.ids[broken[0]]}."
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def classes(self) -> int:
        """How many classes the model tells apart."""
        return int(self.logits.shape[1])

    @property
    def top1(self) -> NDArray[np.int64]:
        """The predicted class of every image; the lower index where logits tie."""
        return np.asarray(self.logits.argmax(axis=1), np.int64)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the predicted class is the label, for every image."""
        return np.asarray(self.top1 == self.labels)

    def save(self, path: Path) -> None:
        """Write a compressed .npz, atomically; the same predictions give the same bytes."""
        with atomic_path(path) as part, part.open("wb") as file:
            np.savez_compressed(
                file,
                ids=np.array(self.ids, np.str_),
                labels=self.labels.astype(np.int64),
                logits=self.logits.astype(np.float32),
                data=np.array(self.data),
            )

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Read what `save` wrote; ArtifactError where the file is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(
                    ids=tuple(arrays["ids"].tolist()),
                    labels=arrays["labels"].astype(np.int64),
                    logits=arrays["logits"].astype(np.float32),
                    data=str(arrays["data"]),
                )
        except FileNotFoundError as error:
            raise ArtifactError(f"{path} does not exist.") from error
        except (
            OSError,
            ValueError,
            KeyError,
            EOFError,
            zipfile.BadZipFile,
            zlib.error,
            UserError,
        ) as error:
            raise ArtifactError(
                f"{path} is not a readable predictions file: {error}", "Run the evaluation again."
            ) from error


def predictions_from_images(
    session: Session,
    source: ImageSource,
    spec: InputSpec,
    batch: int = 64,
    indices: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Predictions:
    """Run a model over labelled images (all, or `indices` in their order).

    Images are decoded a few batches ahead of the model, so memory does not grow with their
    number. Raises UserError for an unreadable image, for a class the model does not have and
    for outputs that are not (batch, classes).
    """
    order = list(range(len(source)) if indices is None else indices)
    if not order or batch < 1:
        raise UserError(f"{len(order)} images in batches of {batch}: nothing to evaluate.")
    output = _logits_output(session, spec)
    labels = source.labels[order]
    logits: list[NDArray[np.float32]] = []
    done = 0
    for inputs in _decoded_ahead(source, spec, batch, order):
        values = session.run(inputs)[output]
        if values.ndim != 2 or len(values) != len(inputs):
            raise UserError(
                f"the model's output {session.output_names[output]} has shape {values.shape} for "
                f"{len(inputs)} images; expected (images, classes)."
            )
        if not logits:
            _check_classes(source, labels, values.shape[1])
        logits.append(np.array(values, np.float32))
        done += len(inputs)
        if progress is not None:
            progress("evaluate", done, len(order))
    return Predictions(
        ids=tuple(source.image_id(index) for index in order),
        labels=labels,
        logits=np.concatenate(logits),
        data=source_hash(source, order),
    )


def _logits_output(session: Session, spec: InputSpec) -> int:
    """The output that the spec names, else the only one."""
    names = session.output_names
    if spec.output_name in names:
        return names.index(spec.output_name)
    if len(names) == 1:
        return 0
    raise UserError(
        f"the model has outputs {', '.join(names)} and none is called {spec.output_name}.",
        "Set output_name in the input spec.",
    )


def _check_classes(source: ImageSource, labels: NDArray[np.int64], classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise UserError(
            f"{source.name} {source.split} has labels {low} to {high} and the model has "
            f"{classes} classes (0 to {classes - 1}).",
            "The model and the data must agree on the classes.",
        )


def _decoded_ahead(
    source: ImageSource, spec: InputSpec, batch: int, order: Sequence[int]
) -> Iterator[NDArray[Any]]:
    """Yield input batches in order while threads decode at most `_BATCHES_AHEAD` more."""

    def decode(start: int) -> NDArray[Any]:
        chosen = order[start : start + batch]
        (inputs, _labels) = next(batches(source, spec, batch, chosen))
        return inputs

    starts = iter(range(0, len(order), batch))
    with ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode") as pool:
        waiting: deque[Future[NDArray[Any]]] = deque(
            pool.submit(decode, start) for start in itertools.islice(starts, _BATCHES_AHEAD)
        )
        try:
            while waiting:
                inputs = waiting.popleft().result()
                for start in itertools.islice(starts, 1):
                    waiting.append(pool.submit(decode, start))
                yield inputs
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
