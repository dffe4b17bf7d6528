"""The range table: per tensor one range for each grid, and what they were made from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.identity import RangeIdentity, StatisticsIdentity
from deploy_tools.artifacts import write_json
from deploy_tools.errors import ArtifactError, nearest

FILE = "ranges.json"
GRIDS = ("u8", "s8")
_SCHEMA = 1


@dataclass(frozen=True)
class TensorRange:
    """One tensor's statistics in short, and its range for each grid.

    low, high: smallest and largest value seen. zero_share: share of exact zeros.
    ranges: grid -> (low, high), low <= 0 <= high; "s8" is (-t, t). (0, 0) only where every
        value seen is zero. clipped: grid -> share of the values that lie outside its range.
    """

    low: float
    high: float
    count: int
    zero_share: float
    ranges: Mapping[str, tuple[float, float]]
    clipped: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "low": self.low,
            "high": self.high,
            "count": self.count,
            "zero_share": self.zero_share,
            "ranges": {grid: list(pair) for grid, pair in self.ranges.items()},
            "clipped": dict(self.clipped),
        }


@dataclass(frozen=True)
class RangeTable:
    """Ranges by tensor name.

    identity: model, data, preprocessing, tensors, method and its settings, as hashes and names.
    input_spec: the model's input spec as JSON, for a reader. tool: version that made it.
    """

    identity: RangeIdentity
    images: int
    input_spec: str
    tool: str
    tensors: Mapping[str, TensorRange]

    @property
    def method(self) -> str:
        """Name of the method that chose the ranges."""
        return self.identity.method

    @property
    def settings(self) -> Mapping[str, float]:
        """The method's settings."""
        return self.identity.settings

    @property
    def model_sha256(self) -> str:
        """Hash of the FP32 ONNX file that was calibrated."""
        return self.identity.statistics.model_sha256

    @property
    def data_sha256(self) -> str:
        """Hash of the calibration images' contents."""
        return self.identity.statistics.data_sha256

    def key(self) -> str:
        """sha256 over (model, data, preprocessing, tensors, method, settings)."""
        return self.identity.key()

    def range_of(self, tensor: str, grid: str) -> tuple[float, float]:
        """Return (low, high) of a tensor on grid "u8" or "s8"; low <= 0 <= high.

        Raises ArtifactError where the table does not hold the tensor or the grid.
        """
        found = self.tensors.get(tensor)
        if found is None:
            raise ArtifactError(
                f'the range table has no tensor "{tensor}".',
                "It was made for another model or placement: calibrate again.",
            )
        if grid not in found.ranges:
            raise ArtifactError(f'the range table has no grid "{grid}".', nearest(grid, GRIDS))
        return found.ranges[grid]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; the same table gives the same bytes."""
        statistics = self.identity.statistics
        return {
            "schema": _SCHEMA,
            "key": self.key(),
            "method": self.method,
            "settings": dict(self.settings),
            "images": self.images,
            "model_sha256": statistics.model_sha256,
            "data_sha256": statistics.data_sha256,
            "preprocessing_sha256": statistics.preprocessing_sha256,
            "input_spec": self.input_spec,
            "tool": self.tool,
            "tensors": {name: tensor.to_dict() for name, tensor in self.tensors.items()},
        }

    def save(self, path: Path) -> None:
        """Write JSON with sorted keys, atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> RangeTable:
        """Read what `save` wrote; ArtifactError where it is missing, damaged or changed."""
        try:
            return _from_dict(json.loads(path.read_text("utf-8")))
        except FileNotFoundError as error:
            raise ArtifactError(f"{path} does not exist.", "Run calibrate first.") from error
        except KeyError as error:
            reason = f"it lacks {error}"
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            reason = str(error)
        raise ArtifactError(f"{path} is damaged: {reason}.", "Run calibrate again.")

    def __str__(self) -> str:
        settings = "".join(f", {key} {value:g}" for key, value in self.settings.items())
        head = (
            f"{len(self.tensors)} tensors, {self.method}{settings}, {self.images} images, "
            f"model {self.model_sha256[:12]}, data {self.data_sha256[:12]}"
        )
        return "\n".join([head, *_rows(self.tensors)])


def require_fresh(table: RangeTable, expected: RangeIdentity) -> None:
    """Raise ArtifactError (exit 7), saying what changed, where the table is not of `expected`."""
    differences = table.identity.differences(expected)
    if differences:
        raise ArtifactError(
            f"the range table is stale: {' and '.join(differences)} changed since it was made.",
            "Run calibrate again.",
        )


def _rows(tensors: Mapping[str, TensorRange]) -> list[str]:
    header = ("tensor", "seen", "zero", "u8", "clipped", "s8", "clipped")
    rows = [header]
    for name, tensor in tensors.items():
        cells = [name, _pair((tensor.low, tensor.high)), f"{tensor.zero_share:.0%}"]
        for grid in GRIDS:
            cells += [_pair(tensor.ranges[grid]), f"{tensor.clipped[grid]:.4%}"]
        rows.append(tuple(cells))  # type: ignore[arg-type]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _pair(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.4g}..{pair[1]:.4g}"


def _from_dict(values: dict[str, Any]) -> RangeTable:
    if not isinstance(values, dict):
        raise ValueError("it is not a table")
    if values["schema"] != _SCHEMA:
        raise ValueError(f"schema {values['schema']} is not {_SCHEMA}")
    tensors = {str(name): _tensor(name, entry) for name, entry in values["tensors"].items()}
    texts = ("method", "model_sha256", "data_sha256", "preprocessing_sha256", "input_spec", "tool")
    for key in texts:
        if not isinstance(values[key], str):
            raise ValueError(f"{key} is not text")
    settings = {str(key): _number(value, key) for key, value in values["settings"].items()}
    statistics = StatisticsIdentity(
        values["model_sha256"],
        values["data_sha256"],
        values["preprocessing_sha256"],
        tuple(sorted(tensors)),
    )
    identity = RangeIdentity(statistics, values["method"], settings)
    if identity.key() != values["key"]:
        raise ValueError("its key does not match what it holds")
    images = _whole(values["images"], "images")
    return RangeTable(identity, images, values["input_spec"], values["tool"], tensors)


def _tensor(name: str, entry: dict[str, Any]) -> TensorRange:
    low, high = _number(entry["low"], name), _number(entry["high"], name)
    if low > high:
        raise ValueError(f'tensor "{name}" has low {low} above high {high}')
    ranges = {grid: _range(entry["ranges"][grid], f"{name} {grid}") for grid in GRIDS}
    if ranges["s8"][0] != -ranges["s8"][1]:
        raise ValueError(f'the s8 range of tensor "{name}" is not symmetric')
    return TensorRange(
        low=low,
        high=high,
        count=_whole(entry["count"], name),
        zero_share=_share(entry["zero_share"], name),
        ranges=ranges,
        clipped={grid: _share(entry["clipped"][grid], name) for grid in GRIDS},
    )


def _range(value: Any, where: str) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"the range of {where} is not a pair")
    low, high = _number(value[0], where), _number(value[1], where)
    if not low <= 0.0 <= high:
        raise ValueError(f"the range {low}..{high} of {where} does not hold zero")
    return low, high


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} of {where} is not a finite number")
    return float(value)


def _share(value: Any, where: str) -> float:
    share = _number(value, where)
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"{share} of {where} is not a share")
    return share


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} of {where} is not a count")
    return value
