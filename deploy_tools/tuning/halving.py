"""Successive halving: measure all a little, keep the better half, measure those longer.

Karnin, Koren and Somekh, Almost Optimal Exploration in Multi-Armed Bandits (ICML 2013), where every
rung gets the same share of the time. Two differences: the default is measured in every rung beside
the others, since it is what scores are relative to, and a rung's scores are of that rung alone,
because the time per candidate, and with it the noise, differs from rung to rung.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True)
class Rung(Generic[T]):
    """What one rung found: candidates with their scores, the best first."""

    scores: tuple[tuple[T, float], ...]

    def best(self, count: int) -> list[T]:
        """Return the `count` best."""
        return [candidate for candidate, _ in self.scores[:count]]


def successive_halving(
    candidates: Sequence[T],
    default: T,
    measure: Callable[[Sequence[T], float], Mapping[T, float]],
    keep: int,
    seconds: float,
) -> list[Rung[T]]:
    """Return the rungs, of which the last one's first `keep` are the result.

    measure(some, seconds): a score for each, the larger the better, all found side by side within
    the time; `default` is always one of them. Without another candidate nothing is measured.
    """
    alive = [default, *(c for c in dict.fromkeys(candidates) if c != default)]
    if len(alive) == 1:
        return []
    count = max(1, math.ceil(math.log2(len(alive) / keep)))
    rungs: list[Rung[T]] = []
    for _ in range(count):
        scores = measure(alive, seconds / count)
        ranked = sorted(alive, key=lambda candidate: -scores[candidate])
        rungs.append(Rung(tuple((candidate, scores[candidate]) for candidate in ranked)))
        better = ranked[: max(keep, math.ceil(len(ranked) / 2))]
        alive = [default, *(c for c in better if c != default)]
    return rungs
