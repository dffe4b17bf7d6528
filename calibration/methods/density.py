"""A histogram as a density: mass spread evenly inside each bin, exact zeros apart.

Exact zeros are on every grid and cost nothing, but after a ReLU they are half of all
values: inside a bin they would pull every method towards too small a range.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from calibration.observers import TensorStatistics

Side = tuple[float, float]
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Density:
    """Mass of the values other than zero on bins [(first + k) w, (first + k + 1) w).

    mass: float64, one value a bin. zeros: how many values are exactly zero.
    low, high: the smallest and largest value, exact.
    """

    first: int
    width: float
    mass: Array
    zeros: int
    low: float
    high: float

    @classmethod
    def of(cls, statistics: TensorStatistics) -> Density:
        """Build it from a tensor's statistics.

        Their bin 0 holds both signs, (-w, w); where the tensor has both, its values other
        than zero are shared out evenly.
        """
        counts = statistics.counts.astype(np.float64)
        first, last = statistics.first, statistics.first + len(counts) - 1
        if not first <= 0 <= last:
            start = first if first > 0 else first - 1
            return cls(start, statistics.width, counts, 0, statistics.low, statistics.high)
        near_zero = counts[-first] - statistics.zeros
        negative, positive = counts[:-first], counts[-first + 1 :]
        share = 0.5 if statistics.low < 0.0 < statistics.high else float(statistics.low < 0.0)
        middle = np.array([near_zero * share, near_zero * (1.0 - share)])
        mass = np.concatenate([negative, middle, positive])
        return cls(
            first - 1, statistics.width, mass, statistics.zeros, statistics.low, statistics.high
        )

    @property
    def bounds(self) -> Side:
        """The range seen, with zero in it."""
        return min(self.low, 0.0), max(self.high, 0.0)

    @property
    def total(self) -> float:
        """All values, zeros too."""
        return float(self.mass.sum()) + self.zeros

    @cached_property
    def edges(self) -> Array:
        """The bins' edges, one more than bins."""
        index = self.first + np.arange(len(self.mass) + 1, dtype=np.float64)
        return index * self.width

    @cached_property
    def cumulative(self) -> Array:
        """Mass below each edge."""
        return np.concatenate([[0.0], np.cumsum(self.mass)])

    def coarser(self) -> Density:
        """Return it with bins of twice the width."""
        index = (self.first + np.arange(len(self.mass))) // 2
        mass: Array = np.bincount(index - index[0], weights=self.mass).astype(np.float64)
        return replace(self, first=int(index[0]), width=2 * self.width, mass=mass)

    def mass_below(self, value: float) -> float:
        """Return the mass of the values other than zero below `value`."""
        return float(np.interp(value, self.edges, self.cumulative))

    def share_outside(self, low: float, high: float) -> float:
        """Return the share of all values below `low` or above `high`."""
        below = 0.0 if low <= self.low else self.mass_below(low)
        above = 0.0 if high >= self.high else float(self.cumulative[-1]) - self.mass_below(high)
        return min((below + above) / self.total, 1.0) if self.total else 0.0


def fold(density: Density) -> Density:
    """Return the density of |x|."""
    index = density.first + np.arange(len(density.mass))
    folded = np.where(index < 0, -index - 1, index)
    first = int(folded.min())
    mass: Array = np.bincount(folded - first, weights=density.mass).astype(np.float64)
    high = max(abs(density.low), abs(density.high))
    low = 0.0 if density.low < 0.0 < density.high else min(abs(density.low), abs(density.high))
    return replace(density, first=first, mass=mass, low=low, high=high)
