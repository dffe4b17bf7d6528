"""The choice with a latency limit: the largest rate of single images whose p99 keeps it.

Candidates are scored on paper with measured times of their calls. Two of them are then searched for
real; the better one is searched again beside the default, in rounds that had no part in choosing it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.server import LATE_SHARE
from benchmarks.speed import SpeedRun
from benchmarks.statistics import paired_ratio_interval
from deploy_tools.errors import BudgetError
from deploy_tools.pipeline.tuning_bench import TEST_ROUNDS, TuningBench, service_times
from deploy_tools.pipeline.tuning_choice import (
    DEFAULT_SECONDS,
    NOTHING,
    REPLAY_SHARE,
    Choice,
    TuneConfig,
    kept_if_faster,
)
from deploy_tools.tuning.arrivals import predicted_rate
from deploy_tools.tuning.halving import successive_halving
from deploy_tools.tuning.settings import Settings


@dataclass
class _Paper:
    """What is known of candidates from calls one after the other: median and p99 of a call, and
    the rate that would keep the limit; 0 where calls are too slow for it."""

    bench: TuningBench
    default: Settings
    limit_ms: float
    seed: int
    median_ms: dict[Settings, float] = field(default_factory=dict)
    p99_ms: dict[Settings, float] = field(default_factory=dict)
    rates: dict[Settings, float] = field(default_factory=dict)

    def score(self, some: Sequence[Settings], seconds: float) -> dict[Settings, float]:
        """Time the calls of some; return the rates, below 0 minus p99 where calls are too slow."""
        self.bench.keep(some)
        runs = self.bench.times(some, self.default, seconds, f"{len(some)} candidates")
        for one, run in runs.items():
            times = service_times(run)
            self.median_ms[one], self.p99_ms[one] = (1e3 * np.percentile(times, (50, 99))).tolist()
            self.rates[one] = predicted_rate(times, one.streams, self.limit_ms / 1e3, self.seed)
        return {one: self.rates[one] or -self.p99_ms[one] for one in runs}


def choose_within(
    bench: TuningBench,
    default: Settings,
    usable: Sequence[Settings],
    candidates: Sequence[Settings],
    start: float,
    config: TuneConfig,
) -> Choice:
    """Return the settings, without a batch, with the largest rate within the limit.

    usable: candidates that are open, and the default. candidates: all of them. start: the bench's clock when the time began.
    Raises BudgetError where nothing keeps the limit, UserError where the time is too short.
    """
    limit_ms = config.latency_limit_ms or 0.0
    fastest = min(bench.image_s(settings) for settings in usable)
    # Of images that take longer than the limit, nothing has to be searched for.
    budget = config.budget_s(fastest) if 1e3 * fastest < limit_ms else config.budget_s()
    end = start + budget
    scoring = (1 - REPLAY_SHARE) * budget
    if config.seconds is None:
        scoring = min(scoring, DEFAULT_SECONDS)  # it is the searches that need so long
    paper = _Paper(bench, default, limit_ms, config.seed)
    left = max(start + scoring - bench.now, 0.5 * scoring)
    rungs = successive_halving(usable, default, paper.score, 2, 0.7 * left)
    best = rungs[-1].best(2) if rungs else [default]
    told, refused = bench.open_told(default, best, candidates, 0.3 * left)
    last = successive_halving([*best, *told], default, paper.score, 2, 0.3 * left)
    tried = (*rungs, *last)
    if not tried:
        paper.score((default,), 0.5 * left)
    # Its calls are the shortest of all: it may keep a limit that the one with most of them does not.
    quickest = min(paper.median_ms, key=lambda s: paper.median_ms[s])
    if paper.median_ms[quickest] > limit_ms:
        nearest = min(paper.p99_ms, key=lambda s: paper.p99_ms[s])
        raise _missed(limit_ms, nearest, paper.p99_ms[nearest])
    best = tried[-1].best(1) if tried else []
    rivals = [s for s in dict.fromkeys((*best, quickest)) if s != default]
    found = _searched(paper, rivals, end, REPLAY_SHARE * budget)
    return replace(found, tried=tried, skipped=refused)


def _searched(paper: _Paper, rivals: Sequence[Settings], end: float, replay: float) -> Choice:
    """Return what real searches say of at most two rivals and the default.

    end: the bench's clock when the time ends; replay: seconds that searches may take at least.
    """
    bench, default, limit_ms = paper.bench, paper.default, paper.limit_ms
    if not rivals:
        runs = bench.server({default: paper.rates[default]}, default, limit_ms, 0, "the default")
        _require_kept({default: rates_within(runs[default])}, runs, limit_ms)
        return Choice(default, default, NOTHING, runs)
    rival = rivals[0]
    if len(rivals) > 1:
        bench.keep((default, *rivals))
        third = max(end - bench.now, replay) / 3
        rates = {s: paper.rates[s] for s in rivals}
        runs = bench.server(rates, rival, limit_ms, third, "the best two")
        rival = max(rivals, key=lambda s: _rank(rates_within(runs[s])))
    bench.keep((default, rival))
    left = max(end - bench.now, 2 * replay / 3)
    rates = {s: paper.rates[s] for s in (default, rival)}
    stage = "the choice beside the default"
    return _judged(default, rival, bench.server(rates, default, limit_ms, left, stage, TEST_ROUNDS))


def _judged(default: Settings, rival: Settings, runs: Mapping[Settings, SpeedRun]) -> Choice:
    """Compare a rival with the default, over the rounds in which both keep the limit.

    Either keeps it where it does so in more than half of the rounds: a single stall of the machine
    decides nothing. Raises BudgetError where neither does.
    """
    rates = {settings: rates_within(run) for settings, run in runs.items()}
    limit_ms = runs[default].samples.latency_limit_ms or 0.0
    _require_kept(rates, runs, limit_ms)
    rounds = len(rates[default])
    if not keeps(rates[default]):
        rate, kept = np.median(_kept(rates[rival])), len(_kept(rates[default]))
        said = f"{rival}: {rate:.0f} images/s within the limit, which the default does not keep"
        return Choice(rival, default, f"{said} (in {kept} of {rounds} rounds)", runs)
    both = (rates[rival] > 0) & (rates[default] > 0)
    if both.sum() < TEST_ROUNDS:
        said = f"{rival} and the default kept the limit together in {both.sum()} of {rounds} rounds"
        return Choice(default, default, f"{said}: too few to tell them apart", runs)
    above, below = rates[rival][both].tolist(), rates[default][both].tolist()
    ratio = paired_ratio_interval(above, below, runs[rival].seed)
    return kept_if_faster(default, rival, ratio, runs)


def rates_within(run: SpeedRun) -> NDArray[np.float64]:
    """Return the rate that each round's search found, 0 where none kept the limit; (rounds,)."""
    limit_ms = run.samples.latency_limit_ms or 0.0
    return np.array(
        [
            slot.rate or 0.0 if slot.late(limit_ms) <= LATE_SHARE * slot.calls else 0.0
            for slot in run.samples.slots
        ]
    )


def keeps(rates: NDArray[np.float64]) -> bool:
    """Whether most rounds found a rate."""
    return 2 * len(_kept(rates)) > len(rates)


def _kept(rates: NDArray[np.float64]) -> NDArray[np.float64]:
    return rates[rates > 0]


def _rank(rates: NDArray[np.float64]) -> tuple[bool, float]:
    """Return what says which of two goes on: whether it keeps the limit, then its median rate."""
    return keeps(rates), float(np.median(_kept(rates))) if rates.any() else 0.0


def _require_kept(
    rates: Mapping[Settings, NDArray[np.float64]],
    runs: Mapping[Settings, SpeedRun],
    limit_ms: float,
) -> None:
    if not any(map(keeps, rates.values())):
        p99 = {settings: run.latency_ms["p99"].estimate for settings, run in runs.items()}
        nearest = min(p99, key=lambda s: p99[s])
        raise _missed(limit_ms, nearest, p99[nearest])


def _missed(limit_ms: float, nearest: Settings, p99_ms: float) -> BudgetError:
    return BudgetError(
        f"no setting keeps p99 within {limit_ms:g} ms; the nearest ({nearest}) has a p99 of "
        f"{p99_ms:.3g} ms. Nothing was written.",
        "Allow more, or use a smaller model or image.",
    )
