"""How a cost grows: a straight line through it, and the exponent of its growth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deploy_tools.errors import UserError

APART = 4.0
"""The exponent is taken between the largest size and the largest that is at least so many times
smaller: nearer together, noise would decide."""


@dataclass(frozen=True)
class Fit:
    """cost = intercept + slope * size by least squares; r2: the share of the variance explained.

    exponent: e where the cost grows as size^e, from `low` to `high`; a constant part makes it
    smaller, a quadratic part larger than 1.
    """

    slope: float
    intercept: float
    r2: float
    exponent: float
    low: float
    high: float


def fit_of(sizes: Sequence[float], costs: Sequence[float]) -> Fit:
    """Return the fit; UserError without two sizes that lie apart and positive costs."""
    x, y = np.asarray(sizes, np.float64), np.asarray(costs, np.float64)
    if len(x) != len(y) or len(x) < 2 or (np.diff(x) <= 0).any():
        raise UserError(f"sizes {list(sizes)} are not rising, or not one for each cost.")
    if not (np.isfinite(y) & (y > 0)).all():
        raise UserError(f"costs must be positive and finite, got {list(costs)}.")
    lower = np.flatnonzero(x * APART <= x[-1])
    if not len(lower):
        raise UserError(f"no size of {list(sizes)} is {APART:g} times smaller than the largest.")
    low = int(lower[-1])
    slope, intercept = np.polyfit(x, y, 1)
    rest = float(((y - intercept - slope * x) ** 2).sum())
    spread = float(((y - y.mean()) ** 2).sum())
    r2 = 1 - rest / spread if spread > 0 else 1.0
    exponent = math.log(y[-1] / y[low]) / math.log(x[-1] / x[low])
    return Fit(float(slope), float(intercept), r2, exponent, float(x[low]), float(x[-1]))
