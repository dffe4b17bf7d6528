"""A grid of 8-bit levels, and values put on it: the arithmetic of QuantizeLinear."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]

_LEVELS = {"u8": (0, 255), "s8": (-127, 127)}


@dataclass(frozen=True)
class Grid:
    """Levels (q - zero_point) * scale for whole q in [lowest, highest].

    scale is what float32 holds: the files keep it so, and rounding goes by it.
    """

    scale: float
    zero_point: int
    lowest: int
    highest: int

    def nearest(self, values: Values) -> Values:
        """Return the values as a Q/DQ pair gives them back: on the grid, ties to even."""
        scale = np.float32(self.scale)
        levels: Values = np.rint(values / scale)
        levels += np.float32(self.zero_point)
        np.clip(levels, self.lowest, self.highest, out=levels)
        levels -= np.float32(self.zero_point)
        levels *= scale
        return levels


def grid_of(low: float, high: float, kind: str) -> Grid:
    """Return the grid that the writer makes of a range.

    kind: "u8", 256 levels from low to high with zero on one of them; "s8", 255 levels around 0
    (QuantizeLinear clips to -128, which no value in the range reaches). The formulas of
    onnxruntime's quant_utils.compute_scale_zp; an empty range gets scale 1, as there.
    """
    first, last = _LEVELS[kind]
    low, high = min(low, 0.0), max(high, 0.0)
    if kind == "s8":
        high = max(-low, high)
        low = -high
    step = (np.float64(high) - np.float64(low)) / (last - first)  # float64: it sets the zero-point
    if step < np.finfo(np.float32).tiny:
        step, zero = np.float64(1.0), 0
    else:
        zero = 0 if kind == "s8" else int(np.rint(first - low / step))
    return Grid(float(np.float32(step)), zero, -128 if kind == "s8" else first, last)
