"""A model with its statistics and images that those do not know."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.collect import CalibrateConfig, ranges_from_statistics
from calibration.statistics import Statistics
from calibration.table import RangeTable


@dataclass(frozen=True)
class Demo:
    """The model's file, its statistics, and one pass over held-out images at a call."""

    model: Path
    statistics: Statistics
    inputs: NDArray[np.float32]

    def table(self, method: str = "mse", percentile: float = 99.999) -> RangeTable:
        config = CalibrateConfig(method=method, percentile=percentile)
        return ranges_from_statistics(self.statistics, config)

    def images(self, count: int = 24, batch: int = 10) -> Callable[[], Iterable[NDArray]]:
        """A pass in batches of a size that fits nothing else."""
        return lambda: (self.inputs[i : i + batch][: count - i] for i in range(0, count, batch))
