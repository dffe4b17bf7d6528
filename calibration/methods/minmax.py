"""Min-max: everything seen fits, and one outlier sets the step for all."""

from __future__ import annotations

from collections.abc import Mapping

from calibration.methods.density import Density, Side

SETTINGS: Mapping[str, float] = {}


def choose_range(density: Density, grid: str, settings: Mapping[str, float]) -> Side:
    """Return the range seen, with zero in it."""
    return density.bounds
