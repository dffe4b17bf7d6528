"""The statistics of all tensors of one pass, kept so that another method needs no new pass."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.identity import StatisticsIdentity
from calibration.observers import BINS, TensorStatistics
from deploy_tools.artifacts import atomic_path
from deploy_tools.errors import ArtifactError

FILE = "statistics.npz"
_SCHEMA = 1
_DAMAGED = (
    OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RecursionError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics by tensor name, with what they were made from.

    images: how many images the pass saw. input_spec: the model's, as JSON, for a reader.
    """

    identity: StatisticsIdentity
    images: int
    input_spec: str
    tensors: Mapping[str, TensorStatistics]

    def key(self) -> str:
        """The identity's sha256: equal keys mean equal statistics."""
        return self.identity.key()

    def save(self, path: Path) -> None:
        """Write a compressed .npz, atomically: one JSON header and all counts in one array."""
        names = sorted(self.tensors)
        header = {
            "schema": _SCHEMA,
            "images": self.images,
            "input_spec": self.input_spec,
            "identity": {**vars(self.identity), "tensors": list(self.identity.tensors)},
            "tensors": [{"name": name, **_numbers(self.tensors[name])} for name in names],
        }
        counts = [self.tensors[name].counts for name in names] or [np.zeros(0, np.int64)]
        text = json.dumps(header, sort_keys=True, allow_nan=False).encode()
        with atomic_path(path) as part, part.open("wb") as file:
            np.savez_compressed(
                file, header=np.frombuffer(text, np.uint8), counts=np.concatenate(counts)
            )

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read what `save` wrote; ArtifactError where the file is missing or damaged."""
        if not path.is_file():
            raise ArtifactError(f"{path} does not exist.", "Run calibrate first.")
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(file["header"].tobytes().decode())
                return _from_header(header, file["counts"])
        except _DAMAGED as error:
            raise ArtifactError(f"{path} is damaged: {error}.", "Run calibrate again.") from error


def _numbers(tensor: TensorStatistics) -> dict[str, float | int]:
    return {
        "count": tensor.count,
        "low": tensor.low,
        "high": tensor.high,
        "zeros": tensor.zeros,
        "exponent": tensor.exponent,
        "first": tensor.first,
        "bins": len(tensor.counts),
    }


def _from_header(header: dict[str, Any], counts: NDArray[np.int64]) -> Statistics:
    if header["schema"] != _SCHEMA:
        raise ValueError(f"schema {header['schema']} is not {_SCHEMA}")
    if counts.dtype != np.int64 or counts.ndim != 1:
        raise ValueError("its counts are not whole numbers")
    identity = dict(header["identity"])
    identity["tensors"] = tuple(str(name) for name in identity["tensors"])
    tensors: dict[str, TensorStatistics] = {}
    start = 0
    for entry in header["tensors"]:
        values = dict(entry)
        name, bins = str(values.pop("name")), int(values.pop("bins"))
        tensor = TensorStatistics(**values, counts=counts[start : start + bins])
        _check(name, tensor)
        tensors[name] = tensor
        start += bins
    if start != len(counts) or tuple(sorted(tensors)) != identity["tensors"]:
        raise ValueError("its tensors and its counts do not belong together")
    return Statistics(
        identity=StatisticsIdentity(**identity),
        images=int(header["images"]),
        input_spec=str(header["input_spec"]),
        tensors=tensors,
    )


def _check(name: str, tensor: TensorStatistics) -> None:
    whole = (tensor.count, tensor.zeros, tensor.exponent, tensor.first)
    if not all(type(value) is int for value in whole):
        raise ValueError(f'tensor "{name}" has a count that is not a whole number')
    if not (math.isfinite(tensor.low) and math.isfinite(tensor.high)):
        raise ValueError(f'tensor "{name}" has no finite range')
    bins = len(tensor.counts)
    if not 1 <= bins <= BINS or tensor.counts.min() < 0 or tensor.counts.sum() != tensor.count:
        raise ValueError(f'the histogram of tensor "{name}" does not add up')
    if tensor.low > tensor.high or not 0 <= tensor.zeros <= tensor.count:
        raise ValueError(f'tensor "{name}" has an empty range')
