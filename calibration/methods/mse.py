"""MSE: the range whose grid has the least expected squared error, rounding and clipping together.

The error is that of the very grid the runtime will use: the zero-point is rounded to a whole
number, and every cell's error is integrated over the histogram, exactly for a density that is
even inside each bin, not taken as step**2 / 12.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from calibration.methods.density import Array, Density, Side
from calibration.methods.search import cheapest_range

SETTINGS: Mapping[str, float] = {}


def choose_range(density: Density, grid: str, settings: Mapping[str, float]) -> Side:
    """Return the range with the least expected squared error."""
    moments = Moments(density)

    def cost(lows: Array, highs: Array) -> Array:
        return moments.squared_error(_levels(lows, highs, grid))

    return cheapest_range(density.bounds, cost)


def expected_squared_error(density: Density, grid: str, low: float, high: float) -> float:
    """Return the mean squared error of all values (zeros too) on the grid of one range.

    On "s8" the density is that of |x|.
    """
    levels = _levels(np.array([low]), np.array([high]), grid)
    return float(Moments(density).squared_error(levels)[0]) / density.total


class Moments:
    """Cumulative mass, first and second moment of a density."""

    def __init__(self, density: Density) -> None:
        left, right = density.edges[:-1], density.edges[1:]
        self._density = density
        per_unit = density.mass / density.width
        self._per_unit = per_unit
        self._left = left
        sums = (
            density.mass,
            per_unit * (right**2 - left**2) / 2,
            per_unit * (right**3 - left**3) / 3,
        )
        self._totals = [np.concatenate([[0.0], np.cumsum(values)]) for values in sums]

    def squared_error(self, levels: Array) -> Array:
        """Return the summed squared distance to the nearest level, shape (K,).

        levels: shape (K, levels), rising; values beyond the ends go to the outermost level.
        """
        limits = (levels[:, :-1] + levels[:, 1:]) / 2
        zeroth, first, second = (
            _inside(below, totals[-1])
            for below, totals in zip(self._below(limits), self._totals, strict=True)
        )
        errors = second - 2 * levels * first + levels**2 * zeroth
        summed: Array = np.maximum(errors, 0.0).sum(axis=1)
        return summed

    def _below(self, values: Array) -> tuple[Array, Array, Array]:
        """Return the three moments of everything below each value."""
        density = self._density
        clipped = np.clip(values, density.edges[0], density.edges[-1])
        index = (clipped / density.width - density.first).astype(np.int64)
        index = np.clip(index, 0, len(density.mass) - 1)
        left, per_unit = self._left[index], self._per_unit[index]
        zeroth, first, second = (totals[index] for totals in self._totals)
        return (
            zeroth + per_unit * (clipped - left),
            first + per_unit * (clipped**2 - left**2) / 2,
            second + per_unit * (clipped**3 - left**3) / 3,
        )


def _inside(below: Array, total: float) -> Array:
    """Return what lies in each cell from what lies below the limits between the cells."""
    ends = np.zeros((len(below), 1))
    return np.diff(np.concatenate([ends, below, ends + total], axis=1), axis=1)


def _levels(lows: Array, highs: Array, grid: str) -> Array:
    """Return the real values of a grid's levels, shape (K, 256) for "u8", (K, 128) for "s8"."""
    if grid == "s8":
        return np.outer(highs / 127, np.arange(128))
    scale = (highs - lows) / 255
    zero_point = np.clip(np.round(-lows / np.where(scale > 0, scale, 1.0)), 0, 255)
    return (np.arange(256)[None, :] - zero_point[:, None]) * scale[:, None]
