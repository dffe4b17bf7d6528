"""Range methods by name. A new one is one file with `choose_range` and one line in `METHODS`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Protocol, cast

from calibration.methods.density import Density, Side, fold
from calibration.observers import TensorStatistics
from deploy_tools.errors import UserError, nearest

METHODS = {
    "minmax": "calibration.methods.minmax",
    "percentile": "calibration.methods.percentile",
    "entropy": "calibration.methods.entropy",
    "mse": "calibration.methods.mse",
}
GRIDS = ("u8", "s8")


class Method(Protocol):
    """What a method's module holds.

    SETTINGS: the settings it takes, with their defaults.
    """

    SETTINGS: Mapping[str, float]

    @staticmethod
    def choose_range(density: Density, grid: str, settings: Mapping[str, float]) -> Side:
        """Return (low, high), low <= 0 <= high, for a tensor that has a value other than zero.

        On grid "s8" the density is that of |x| and the answer (0, t).
        """
        ...


def method_named(name: str) -> Method:
    """Return the method's module; UserError with the nearest name where there is none."""
    if name not in METHODS:
        raise UserError(f'range method "{name}" is not known.', nearest(name, METHODS))
    return cast(Method, importlib.import_module(METHODS[name]))


def range_for(
    statistics: TensorStatistics, grid: str, method: str, settings: Mapping[str, float]
) -> tuple[float, float]:
    """Choose one tensor's range on a grid.

    grid: "u8", affine, 256 levels from low to high; "s8", symmetric, 255 levels from -t to t.
    settings: as the method's SETTINGS; those left out take their defaults.
    Returns (low, high) with low <= 0 <= high, within what was seen; (0, 0) only for a tensor
    that is zero everywhere.
    """
    module = method_named(method)
    values = {**module.SETTINGS, **{k: v for k, v in settings.items() if k in module.SETTINGS}}
    if statistics.low == statistics.high == 0.0:
        return 0.0, 0.0
    density = Density.of(statistics)
    if grid == "s8":
        high = module.choose_range(fold(density), grid, values)[1]
        return -high, high
    if grid == "u8":
        return module.choose_range(density, grid, values)
    raise UserError(f'grid "{grid}" is not known.', nearest(grid, GRIDS))


def clipped_share(statistics: TensorStatistics, bounds: tuple[float, float]) -> float:
    """Return the share of the values that lie outside `bounds`, to within one bin."""
    return Density.of(statistics).share_outside(*bounds)
