"""Entropy: the range whose quantized histogram tells least apart from the original one.

Migacz, "8-bit inference with TensorRT", GTC 2017: for each candidate, P is the histogram with
what is clipped added to the outermost bins, Q the histogram inside the range averaged over each
quantization level, zero where P is zero; the candidate with the least KL(P || Q) wins. What
differs, and why:

- Exact zeros are left out: they are on every grid, and after a ReLU they would outweigh all else.
- So is any other value that repeats (the background of the input images, say): KL would cut off
  everything to tell it from its neighbours. It must stay inside the range instead.
- Thousands of bins meet 128 (|x| on "s8") or 256 ("u8") levels. With as many bins as levels
  every candidate costs only what it clips, and the answer is min-max: onnxruntime's defaults.
- A level whose only mass is clipped mass has no Q: such a candidate is no candidate.
- A histogram with few values in each bin is made coarser first: KL would count the noise.
- On "u8" with both signs the two ends are searched together.

All sums are differences of prefix sums, so a candidate costs its levels and not its bins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from calibration.methods.density import Array, Density, Side
from calibration.methods.search import cheapest_range

SETTINGS: Mapping[str, float] = {}

Index = NDArray[np.int64]

_LEVELS = {"u8": 256, "s8": 128}
# Below this many bins a level, KL no longer sees what rounding does.
_BINS_PER_LEVEL = 2
_FEWEST_BINS = 2048
_VALUES_PER_BIN = 64
_SPIKE_SHARE, _SPIKE_HEIGHT = 0.01, 16.0


def choose_range(density: Density, grid: str, settings: Mapping[str, float]) -> Side:
    """Return the range with the least divergence; min-max where the bins are too few to tell."""
    density, kept = _without_spikes(density)
    if not density.cumulative[-1]:
        return density.bounds
    density = _coarsened(density)
    sums = _PrefixSums(density)
    limits = (0, len(density.mass))

    def cost(lows: Array, highs: Array) -> Array:
        start = np.clip(np.round(lows / density.width).astype(np.int64) - density.first, *limits)
        end = np.clip(np.round(highs / density.width).astype(np.int64) - density.first, *limits)
        # Wide enough to hold what was seen on a side that is not cut.
        start = np.where(lows <= density.low, 0, start)
        end = np.where(highs >= density.high, limits[1], end)
        found = sums.divergence(start, end, _LEVELS[grid])
        return np.where((lows <= kept[0]) & (highs >= kept[1]), found, np.inf)

    return cheapest_range(density.bounds, cost)


class _PrefixSums:
    """Sums over the bins before each edge."""

    def __init__(self, density: Density) -> None:
        mass = density.mass
        self._mass = mass
        self._sum = density.cumulative
        self._filled = np.concatenate([[0], np.cumsum(mass > 0)])
        self._m_log_m = np.concatenate([[0.0], np.cumsum(_x_log_x(mass))])

    def divergence(self, start: Index, end: Index, levels: int) -> Array:
        """Return KL(P || Q) in nats of the bins start <= i < end, shape (K,)."""
        valid = end - start >= _BINS_PER_LEVEL * levels
        start, end = np.where(valid, start, 0), np.where(valid, end, len(self._mass))
        below, above = self._sum[start], self._sum[-1] - self._sum[end]
        inside = self._sum[end] - self._sum[start]
        edges = start[:, None] + (np.arange(levels + 1) * (end - start)[:, None]) // levels
        level = np.diff(self._sum[edges], axis=1)
        filled = np.diff(self._filled[edges], axis=1)
        p_level, p_log_p = level.copy(), self._m_log_m[end] - self._m_log_m[start]
        for at, clipped, bin_mass in (
            (0, below, self._mass[start]),
            (levels - 1, above, self._mass[end - 1]),
        ):
            p_level[:, at] += clipped
            filled[:, at] += (clipped > 0) & (bin_mass == 0)
            p_log_p += _x_log_x(bin_mass + clipped) - _x_log_x(bin_mass)
        with np.errstate(divide="ignore", invalid="ignore"):
            log_q = np.log(level / filled)
            p_log_q = np.where(p_level > 0, p_level * log_q, 0.0).sum(axis=1)
            total = self._sum[-1]
            found = (p_log_p - p_log_q) / total + np.log(inside / total)
        # The difference of two long sums leaves a residue of rounding: below it is zero.
        found = np.where(found < 1e-12, 0.0, found)
        return np.where(valid & np.isfinite(found), found, np.inf)


def _x_log_x(values: Array) -> Array:
    return values * np.log(np.where(values > 0, values, 1.0))


def _without_spikes(density: Density) -> tuple[Density, Side]:
    """Return the density with the bins of repeated values as their neighbours, and what to keep.

    Such a bin holds over a hundredth of the mass and many times what its neighbours hold. The
    range to keep is from the lowest such value to the highest, with zero in it.
    """
    mass = density.mass
    around = np.pad(mass, 1)
    neighbours = (around[:-2] + around[2:]) / 2
    spikes = mass > np.maximum(_SPIKE_SHARE * density.cumulative[-1], _SPIKE_HEIGHT * neighbours)
    if not spikes.any():
        return density, (0.0, 0.0)
    at = np.flatnonzero(spikes)
    low, high = density.bounds
    kept = (
        max(min(float(density.edges[at[0]]), 0.0), low),
        min(max(float(density.edges[at[-1] + 1]), 0.0), high),
    )
    return replace(density, mass=np.where(spikes, neighbours, mass)), kept


def _coarsened(density: Density) -> Density:
    """Merge bins 2:1 until they hold enough values each, or are as few as the search bears."""
    while len(density.mass) >= 2 * _FEWEST_BINS and density.cumulative[-1] < _VALUES_PER_BIN * len(
        density.mass
    ):
        density = density.coarser()
    return density
