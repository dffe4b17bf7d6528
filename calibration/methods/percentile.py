"""Percentile: the range that holds the given share of all values.

On "s8" the share is of |x|. On "u8" the rest is cut off half at each end, as onnxruntime's
calibrator does, so that both methods mean the same by one number.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from calibration.methods.density import Density, Side

SETTINGS: Mapping[str, float] = {"percentile": 99.999}


def choose_range(density: Density, grid: str, settings: Mapping[str, float]) -> Side:
    """Return the quantiles, inside what was seen.

    Where nearly all values are zero the quantiles can both be zero, which would silence the
    tensor: then the share is of the values other than zero.
    """
    outside = 1.0 - settings["percentile"] / 100.0
    if grid == "u8":
        outside /= 2.0
    found = _quantiles(density, outside, density.zeros)
    return found if found != (0.0, 0.0) else _quantiles(density, outside, 0)


def _quantiles(density: Density, outside: float, zeros: int) -> Side:
    """Return the values with a share of `outside` below and above, clipped to zero's two sides."""
    mass = float(density.cumulative[-1])
    cut = outside * (mass + zeros)
    # The zeros lie between the two signs: an end that the cut does not reach is not moved by them.
    negative = density.mass_below(0.0) if density.low < 0.0 else 0.0
    low = _value_at(density, cut) if cut < negative else 0.0
    high = _value_at(density, mass - cut) if cut < mass - negative else 0.0
    return min(max(low, density.low), 0.0), max(min(high, density.high), 0.0)


def _value_at(density: Density, mass: float) -> float:
    return float(np.interp(mass, density.cumulative, density.edges))
