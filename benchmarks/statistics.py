"""Intervals and tests behind every figure in a report; numpy and math only.

Proportions: Wilson's interval (one), Tango's score interval and McNemar's exact test (paired).
Timings and energies: bootstrap intervals, seeded, so that the same samples give the same report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from deploy_tools.errors import UserError

CONFIDENCE = 0.95
RESAMPLES = 2000
_RESAMPLES_OF_IMAGES = 1000


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its confidence interval, in the estimate's unit."""

    estimate: float
    low: float
    high: float

    def ends(self) -> list[float]:
        """Return [low, high], as reports write it."""
        return [self.low, self.high]


def wilson_interval(successes: int, total: int, confidence: float = CONFIDENCE) -> Interval:
    """Return Wilson's score interval of a proportion (fractions).

    Source: Wilson, Probable Inference, JASA 22 (1927); recommended by Brown, Cai and
    DasGupta, Statistical Science 16 (2001). Raises UserError where 0 <= successes <= total
    and total >= 1 do not hold.
    """
    if total < 1 or not 0 <= successes <= total:
        raise UserError(f"a proportion needs 0 <= successes <= total, got {successes} of {total}.")
    z = _normal_quantile(confidence)
    share = successes / total
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    middle = share + z * z / (2 * total)
    scale = 1 + z * z / total
    # The ends are exactly 0 and 1 there; rounding must not move them inside.
    low = 0.0 if successes == 0 else (middle - spread) / scale
    high = 1.0 if successes == total else (middle + spread) / scale
    return Interval(share, low, high)


def paired_drop_interval(
    lost: int, gained: int, total: int, confidence: float = CONFIDENCE
) -> Interval:
    """Return the drop of accuracy on the same images, in percentage points (baseline - candidate).

    lost: images that only the baseline gets right; gained: only the candidate.
    Tango's asymptotic score interval (Statistics in Medicine 17:891-908, 1998): it inverts the
    score test, stays within [-100, 100] and has a sensible width without discordant pairs.
    Raises UserError where the counts do not fit.
    """
    if total < 1 or min(lost, gained) < 0 or lost + gained > total:
        raise UserError(f"{lost} lost and {gained} gained do not fit {total} images.")
    z = _normal_quantile(confidence)
    estimate = (lost - gained) / total

    def score(drop: float) -> float:
        return _tango_score(drop, lost, gained, total)

    # The score falls as the drop grows: +z at the low end of the interval, -z at the high end.
    low = _bisect(lambda drop: score(drop) - z, -1.0, estimate)
    high = _bisect(lambda drop: score(drop) + z, estimate, 1.0)
    return Interval(100 * estimate, 100 * low, 100 * high)


def _tango_score(drop: float, lost: int, gained: int, total: int) -> float:
    """Tango's statistic (eq. 9), with the chance of `gained` at its maximum likelihood."""
    a = 2 * total
    b = -lost - gained + (2 * total - lost + gained) * drop
    c = -gained * drop * (1 - drop)
    chance = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = total * (2 * chance + drop * (1 - drop))
    distance = lost - gained - total * drop
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def _bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """Return the root of a falling function; the nearer end where there is none between."""
    if function(low) <= 0:
        return low
    if function(high) >= 0:
        return high
    for _ in range(80):
        middle = (low + high) / 2
        if function(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def mcnemar_exact(lost: int, gained: int) -> float:
    """Return the two-sided exact p of McNemar's test: is one of the two models better?

    Twice the binomial tail of the smaller count at one half, at most 1 (Fagerland, Lydersen
    and Laake, BMC Medical Research Methodology 13:91, 2013). Exact for any counts.
    """
    if min(lost, gained) < 0:
        raise UserError(f"counts cannot be negative, got {lost} and {gained}.")
    pairs, fewer = lost + gained, min(lost, gained)
    if lost == gained:
        return 1.0
    logs = [_log_choose(pairs, k) - pairs * math.log(2) for k in range(fewer + 1)]
    largest = max(logs)
    tail = math.exp(largest) * math.fsum(math.exp(value - largest) for value in logs)
    return min(1.0, 2 * tail)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def logit_sqnr(reference: NDArray[np.float32], logits: NDArray[np.float32]) -> float:
    """Return the signal-to-quantization-noise ratio of logits, in dB; inf where they are equal.

    10 log10(sum(reference^2) / sum((reference - logits)^2)) over all images and classes.
    Both have shape (N, C). Raises UserError on other shapes and where the reference is all zero.
    """
    return _decibels(*(energy.sum() for energy in _energies(reference, logits)))


def logit_sqnr_interval(
    reference: NDArray[np.float32],
    logits: NDArray[np.float32],
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return `logit_sqnr` with a percentile bootstrap interval over images.

    An end is inf where a resample holds only images with equal logits.
    """
    signal, noise = _energies(reference, logits)
    estimate = _decibels(signal.sum(), noise.sum())
    if math.isinf(estimate):
        return Interval(estimate, estimate, estimate)
    generator = np.random.Generator(np.random.PCG64(seed))
    values = np.empty(_RESAMPLES_OF_IMAGES)
    for row in range(len(values)):
        chosen = generator.integers(0, len(signal), len(signal))
        values[row] = _decibels(signal[chosen].sum(), noise[chosen].sum())
    values.sort()  # order statistics: interpolating between a number and inf would give NaN
    rank = round((1 - confidence) / 2 * len(values))
    return Interval(estimate, float(values[rank]), float(values[len(values) - 1 - rank]))


def _energies(
    reference: NDArray[np.float32], logits: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if reference.shape != logits.shape or reference.ndim != 2 or not len(reference):
        raise UserError(
            f"logits have shapes {reference.shape} and {logits.shape}; expected (N, C)."
        )
    exact = reference.astype(np.float64)
    signal = (exact**2).sum(axis=1)
    if not signal.any():
        raise UserError(
            "the reference logits are all zero, so a signal-to-noise ratio means nothing."
        )
    return signal, ((exact - logits) ** 2).sum(axis=1)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def paired_ratio_interval(
    candidate: Sequence[float],
    baseline: Sequence[float],
    seed: int = 0,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return the median over rounds of candidate/baseline, with a bootstrap interval over rounds.

    candidate[i] and baseline[i] (such as images per second) come from the same round, so what
    slows the whole machine down for a while cancels. Raises UserError on fewer than 2 rounds,
    different lengths or values that are not positive and finite.
    """
    if len(candidate) != len(baseline) or len(candidate) < 2:
        raise UserError(
            f"{len(candidate)} and {len(baseline)} rounds cannot be paired.",
            "Both need the same number of rounds, at least 2.",
        )
    above, below = np.asarray(candidate, np.float64), np.asarray(baseline, np.float64)
    if not (np.isfinite(above) & np.isfinite(below) & (above > 0) & (below > 0)).all():
        raise UserError("a ratio needs positive, finite values in every round.")
    ratios = above / below
    chosen = _resampled_rounds(len(ratios), seed, resamples)
    values = np.median(ratios[chosen], axis=1)
    return _expanded(float(np.median(ratios)), values, len(ratios), confidence)


def percentile_intervals(
    rounds: Sequence[NDArray[np.float64]],
    percents: Sequence[float],
    seed: int = 0,
    confidence: float = CONFIDENCE,
    resamples: int = 400,
) -> list[Interval]:
    """Return percentiles of all samples, with bootstrap intervals that draw whole rounds.

    Samples of one round share what the machine did then, so drawing them one by one would
    give intervals that are too narrow (block bootstrap; Kuensch, Annals of Statistics 17, 1989).
    Raises UserError without samples or where a percent is not within [0, 100].
    """
    filled = [np.asarray(samples, np.float64) for samples in rounds if len(samples)]
    if not filled or any(not 0 <= percent <= 100 for percent in percents):
        raise UserError(
            f"percentiles {list(percents)} of {len(filled)} filled rounds mean nothing."
        )
    estimates = np.percentile(np.concatenate(filled), percents)
    values = np.array(
        [
            np.percentile(np.concatenate([filled[i] for i in chosen]), percents)
            for chosen in _resampled_rounds(len(filled), seed, resamples)
        ]
    )
    return [
        _expanded(float(estimate), values[:, column], len(filled), confidence)
        for column, estimate in enumerate(estimates)
    ]


def median_interval(
    values: Sequence[float], seed: int = 0, confidence: float = CONFIDENCE
) -> Interval:
    """Return the median of one value a round, with a bootstrap interval over rounds."""
    rounds = np.asarray(values, np.float64)
    if not len(rounds) or not np.isfinite(rounds).all():
        raise UserError("a median needs at least one value a round, all finite.")
    drawn = np.median(rounds[_resampled_rounds(len(rounds), seed, RESAMPLES)], axis=1)
    return _expanded(float(np.median(rounds)), drawn, len(rounds), confidence)


def _resampled_rounds(rounds: int, seed: int, resamples: int) -> NDArray[np.int64]:
    """Return (resamples, rounds) indices drawn with replacement."""
    generator = np.random.Generator(np.random.PCG64(seed))
    return generator.integers(0, rounds, (resamples, rounds))


def _expanded(
    estimate: float, values: NDArray[np.float64], rounds: int, confidence: float
) -> Interval:
    """Percentile interval, widened for few rounds (Hesterberg, American Statistician 69, 2015).

    The plain percentile interval is too narrow by sqrt((n - 1) / n) and by t over z.
    """
    if rounds < 2:
        return Interval(estimate, estimate, estimate)
    reach = math.sqrt(rounds / (rounds - 1)) * t_quantile(rounds - 1, confidence)
    tail = 100 * NormalDist().cdf(-reach)
    low, high = np.percentile(values, [tail, 100 - tail])
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate))


def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """Return t with P(|T| <= t) = confidence for Student's T with whole degrees of freedom.

    By bisection on the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    if degrees < 1 or not 0 < confidence < 1:
        raise UserError(
            f"t needs degrees >= 1 and 0 < confidence < 1, got {degrees}, {confidence}."
        )
    high = 1.0
    while _t_within(high, degrees) < confidence:
        high *= 2
    return _bisect(lambda t: confidence - _t_within(t, degrees), 0.0, high)


def _t_within(t: float, degrees: int) -> float:
    """P(|T| <= t)."""
    angle = math.atan(t / math.sqrt(degrees))
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for power in range(2 + odd, degrees + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (power - 1) / power
    if not odd:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + math.sin(angle) * total)


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise UserError(f"confidence must lie between 0 and 1, got {confidence}.")
    return NormalDist().inv_cdf((1 + confidence) / 2)
