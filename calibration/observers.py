"""Streaming statistics of one tensor: exact counts in memory that never grows with the images.

The histogram's bins are [i w, (i + 1) w) away from zero, with w = 2**exponent. A power of two
makes the product x / w exact in float32 and makes a coarser histogram an exact 2:1 merge of a
finer one, so the result depends on the values alone, never on their order or batch size. The
bins cover [low, high] and not [-high, high]: a tensor after a ReLU has all of them on its side.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deploy_tools.errors import UserError

BINS = 1 << 14
"""Most bins of a histogram; between half of them and all of them are in use."""

# float32 has 24 significant bits: finer bins than 2**-22 of the largest value hold nothing more.
_FINEST = 22
# 2**126 is the largest power of two whose reciprocal is a normal float32.
_SMALLEST_EXPONENT = -126
# Values at a time: the work buffers (12 bytes a value) stay in a core's second-level cache.
_CHUNK = 1 << 16


@dataclass(frozen=True, eq=False)
class TensorStatistics:
    """What a pass over the images saw of one tensor.

    low, high: smallest and largest value. zeros: how many values are exactly zero.
    counts: int64; counts[k] values lie in bin `first + k` of width 2**exponent. Bin i > 0
        is [i w, (i + 1) w), bin i < 0 is ((i - 1) w, i w], bin 0 is (-w, w).
    """

    count: int
    low: float
    high: float
    zeros: int
    exponent: int
    first: int
    counts: NDArray[np.int64]

    @property
    def width(self) -> float:
        """The bins' width, a power of two."""
        return math.ldexp(1.0, self.exponent)

    @property
    def zero_share(self) -> float:
        """Share of the values that are exactly zero."""
        return self.zeros / self.count if self.count else 0.0

    @property
    def mean(self) -> float:
        """Mean value, to within one bin's width."""
        return float(self.counts @ self._centers()) / max(self.count, 1)

    @property
    def energy(self) -> float:
        """Mean square, from the bins' centers."""
        return float(self.counts @ self._centers() ** 2) / max(self.count, 1)

    def merge(self, other: TensorStatistics) -> TensorStatistics:
        """Return the statistics of both sets of values together; exact in every field."""
        if not self.count or not other.count:
            return self if self.count else other
        both = _widened(self, other.low, other.high)
        _add_coarser(both.counts, both.first, other, both.exponent)
        return replace(both, count=self.count + other.count, zeros=self.zeros + other.zeros)

    def _centers(self) -> NDArray[np.float64]:
        index = np.arange(self.first, self.first + len(self.counts))
        return (index + 0.5 * np.sign(index)) * self.width


EMPTY = TensorStatistics(0, 0.0, 0.0, 0, _SMALLEST_EXPONENT, 0, np.zeros(1, np.int64))


class TensorObserver:
    """Collects the statistics of one tensor; one thread at a time may call `observe`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.statistics = EMPTY

    def observe(self, values: NDArray[np.float32]) -> None:
        """Add all values of an array of any shape.

        Raises UserError, naming the tensor, where a value is infinite or not a number.
        """
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            self._observe_chunk(flat[start : start + _CHUNK])

    def _observe_chunk(self, chunk: NDArray[np.float32]) -> None:
        seen = self.statistics
        low, high = float(chunk.min()), float(chunk.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UserError(
                f'tensor "{self.name}" has {"NaN" if math.isnan(low) else "infinite"} values '
                "on the calibration images.",
                "Such a model has no ranges: check the checkpoint and the input's mean and std.",
            )
        if not seen.count or low < seen.low or high > seen.high:
            seen = _widened(seen, low, high)
        zeros = _add_counts(chunk, seen.exponent, seen.first, seen.counts)
        self.statistics = replace(seen, count=seen.count + chunk.size, zeros=seen.zeros + zeros)


def _widened(seen: TensorStatistics, low: float, high: float) -> TensorStatistics:
    """Return the same statistics with bins that reach from `low` to `high` as well."""
    if seen.count:
        low, high = min(low, seen.low), max(high, seen.high)
    exponent, first, last = _bins(low, high)
    counts = np.zeros(last - first + 1, np.int64)
    if seen.count:
        _add_coarser(counts, first, seen, exponent)
    return replace(seen, low=low, high=high, exponent=exponent, first=first, counts=counts)


def _bins(low: float, high: float) -> tuple[int, int, int]:
    """Return (exponent, first, last) of the finest histogram of at most BINS bins for a range."""
    largest = max(abs(low), abs(high))
    exponent = _SMALLEST_EXPONENT
    if largest > 0.0:
        exponent = max(exponent, math.frexp(largest)[1] - 1 - _FINEST)
        span = high - low
        if span > 0.0:
            exponent = max(exponent, math.frexp(span / BINS)[1] - 2)
    while True:
        first, last = _bin_of(low, exponent), _bin_of(high, exponent)
        if last - first < BINS:
            return exponent, first, last
        exponent += 1


def _bin_of(value: float, exponent: int) -> int:
    return math.trunc(math.ldexp(value, -exponent))


def _add_coarser(
    counts: NDArray[np.int64], first: int, part: TensorStatistics, exponent: int
) -> None:
    """Add `part` to counts of bins `first`... that are 2**(exponent - part.exponent) wider."""
    shift = exponent - part.exponent
    if shift == 0:
        start = part.first - first
        counts[start : start + len(part.counts)] += part.counts
        return
    index = np.arange(part.first, part.first + len(part.counts), dtype=np.int64)
    merged = np.sign(index) * (np.abs(index) >> min(shift, 62))
    np.add.at(counts, merged - first, part.counts)


_buffers = threading.local()


def _add_counts(
    chunk: NDArray[np.float32], exponent: int, first: int, counts: NDArray[np.int64]
) -> int:
    """Add a chunk's values to the bins from `first` on; returns how many are exactly zero."""
    if not hasattr(_buffers, "index"):
        _buffers.index = np.empty(_CHUNK, np.int64)
        _buffers.zero = np.empty(_CHUNK, np.bool_)
    index, zero = _buffers.index[: chunk.size], _buffers.zero[: chunk.size]
    # The cast truncates towards zero, and a product that underflows truncates to zero too.
    scale = np.float32(math.ldexp(1.0, -exponent))
    np.multiply(chunk, scale, out=index, casting="unsafe")
    if first:
        np.subtract(index, first, out=index)
    np.add(counts, np.bincount(index, minlength=len(counts)), out=counts)
    return int(np.count_nonzero(np.equal(chunk, 0.0, out=zero)))
