"""The widest cheapest range: all pairs on a coarse geometric grid, then finer around the best."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from calibration.methods.density import Array, Side

Cost = Callable[[Array, Array], Array]

# Candidates reach down to 2**-8 of what was seen, where one outlier is 256 times the rest.
_OCTAVES = 8.0
_ONE_SIDE, _TWO_SIDES, _FINER = 129, 25, 9
_ROUNDS = 2


def cheapest_range(bounds: Side, cost: Cost) -> Side:
    """Return the (low, high) within `bounds` whose cost is least; the widest of equal ones.

    bounds: (low, high) with low <= 0 <= high; a side that is zero stays zero.
    cost: takes candidates' lows and highs, shape (K,), and returns their costs, shape (K,);
        infinite where a candidate makes no sense. Where all are infinite, `bounds` it is.
    """
    sides = [np.array([0.0]) if bound == 0.0 else _coarse(bounds) for bound in bounds]
    best = bounds
    for finer in range(_ROUNDS + 1):
        lows, highs = (
            pair.ravel() for pair in np.meshgrid(bounds[0] * sides[0], bounds[1] * sides[1])
        )
        costs = cost(lows, highs)
        at = int(np.argmin(costs))
        if not np.isfinite(costs[at]):
            return bounds
        best = float(lows[at]), float(highs[at])
        if finer < _ROUNDS:
            chosen = (at % len(sides[0]), at // len(sides[0]))
            sides = [_around(side, index) for side, index in zip(sides, chosen, strict=True)]
    return best


def _coarse(bounds: Side) -> Array:
    """Return shares of a bound from 1 downwards; 0 as well where the other side remains."""
    both = bounds[0] < 0.0 < bounds[1]
    shares = np.exp2(-np.linspace(0.0, _OCTAVES, _TWO_SIDES if both else _ONE_SIDE))
    return np.append(shares, 0.0) if both else shares


def _around(shares: Array, index: int) -> Array:
    """Return finer shares between the neighbours of `shares[index]`, from the largest down."""
    if len(shares) == 1:
        return shares
    largest, smallest = shares[max(index - 1, 0)], shares[min(index + 1, len(shares) - 1)]
    return np.unique(np.append(np.linspace(largest, smallest, _FINER), shares[index]))[::-1]
