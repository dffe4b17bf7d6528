"""How many random arrivals a second a model would keep up with, from the times of its calls.

A server's search needs seconds for every rate it tries. Here the queue is played through on paper
with measured times, which tells good candidates from bad ones; the choice is then measured.
"""

from __future__ import annotations

import heapq
import math

import numpy as np
from numpy.typing import NDArray

_ARRIVALS = 2000
_STEPS = 12
LATE_SHARE = 0.01
"""The share that may be late: the limit is one on p99."""
_CHANCE = 0.01
"""Above this probability, so many slow calls may be chance."""


def predicted_rate(
    service_s: NDArray[np.float64], streams: int, limit_s: float, seed: int = 0
) -> float:
    """Return the largest rate of Poisson arrivals, a second, that keeps p99 within a limit.

    service_s: times of calls while all streams are busy, seconds, float64 (calls,). First come,
    first served, by whichever stream is free. Of a few calls one that is slower than the limit
    tells nothing of p99: such calls are left out as long as their number may be chance. 0 where
    it is not.
    """
    slow = int((service_s > limit_s).sum())
    if _probability(slow, len(service_s)) < _CHANCE or slow == len(service_s):
        return 0.0
    service_s = service_s[service_s <= limit_s]
    generator = np.random.Generator(np.random.PCG64(seed))
    gaps = generator.standard_exponential(_ARRIVALS).tolist()
    times = generator.choice(service_s, _ARRIVALS).tolist()
    low, high = 0.0, streams / float(service_s.mean())
    for _ in range(_STEPS):
        rate = (low + high) / 2
        if _late(gaps, times, streams, rate, limit_s) <= LATE_SHARE * _ARRIVALS:
            low = rate
        else:
            high = rate
    return low


def _probability(slow: int, calls: int) -> float:
    """Return the binomial P(at least so many slow calls) where one in a hundred is slow."""
    logs = (  # factorials overflow
        math.lgamma(calls + 1) - math.lgamma(k + 1) - math.lgamma(calls - k + 1)
        + k * math.log(LATE_SHARE) + (calls - k) * math.log1p(-LATE_SHARE)
        for k in range(slow)
    )  # fmt: skip
    return 1 - math.fsum(map(math.exp, logs))


def _late(gaps: list[float], times: list[float], streams: int, rate: float, limit_s: float) -> int:
    """Return how many arrivals are answered later than the limit."""
    free = [0.0] * streams
    now, late = 0.0, 0
    for gap, time in zip(gaps, times, strict=True):
        now += gap / rate
        end = max(now, free[0]) + time
        heapq.heapreplace(free, end)
        late += end - now > limit_s
    return late
