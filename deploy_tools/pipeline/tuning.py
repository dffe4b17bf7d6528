"""deploy-tools tune: how one file runs fastest on this machine, found by measuring.

Candidates are thinned out by successive halving, first those without a batch of their own, then the
best of them at several batches. The one that is left is measured once more beside the default, on
fresh timings, since the best of many noisy ones looks better than it is. It is kept only where the
interval of that ratio lies above 1; otherwise the default is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks.speed import SpeedRun
from deploy_tools.errors import BudgetError, UserError
from deploy_tools.pipeline.tuning_bench import (
    MIN_ROUNDS,
    TuningBench,
    least_seconds,
    seconds_of_search,
    service_times,
)
from deploy_tools.tuning.arrivals import predicted_rate
from deploy_tools.tuning.candidates import BATCHES, Skipped, with_batches
from deploy_tools.tuning.halving import Rung, successive_halving
from deploy_tools.tuning.settings import DEFAULT_BATCH, Settings

DEFAULT_SECONDS = 60.0
_FINALISTS = 3
_REPLAY_SHARE = 0.6
"""Of the time, where there is a latency limit: its searches cannot be made shorter."""


@dataclass(frozen=True)
class TuneConfig:
    """What to look for.

    latency_limit_ms: of p99 in the server scenario; None asks for throughput alone. seconds: about
    how long it may take, once the file and the images are loaded; None takes 60, or what the limit
    needs. seed: of orders, arrivals and intervals.
    Raises UserError where the time is too short for the limit.
    """

    latency_limit_ms: float | None = None
    seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seconds is not None and not 0 < self.seconds <= 86_400:
            raise UserError(f"seconds must lie in (0, 86400], got {self.seconds}.")
        if self.latency_limit_ms is None:
            return
        if not 0 < self.latency_limit_ms <= 60_000:
            raise UserError(
                f"the latency limit must lie in (0, 60000] ms, got {self.latency_limit_ms}."
            )
        if self.seconds is not None and self.seconds < self._least:
            raise UserError(
                f"whether a limit of {self.latency_limit_ms:g} ms is kept cannot be seen in "
                f"{self.seconds:g} s.",
                f"Give --seconds {np.ceil(self._least):.0f} or more.",
            )

    @property
    def budget_s(self) -> float:
        """Seconds to spend."""
        return self.seconds if self.seconds is not None else max(DEFAULT_SECONDS, self._least)

    @property
    def _least(self) -> float:
        if self.latency_limit_ms is None:
            return 0.0
        return MIN_ROUNDS * 2 * seconds_of_search(self.latency_limit_ms) / _REPLAY_SHARE


@dataclass(frozen=True)
class Choice:
    """What was chosen, and all that was tried.

    reason: in words. runs: the replay, the default's among them; empty where nothing was left to
    replay. tried: the rungs, in their order; scores are speed over the default, or with a latency
    limit the predicted rate of arrivals (below 0: minus the p99 of a call that is too slow, ms).
    """

    settings: Settings
    default: Settings
    reason: str
    runs: Mapping[Settings, SpeedRun] = field(default_factory=dict)
    tried: tuple[Rung[Settings], ...] = ()
    skipped: tuple[Skipped, ...] = ()

    @property
    def is_default(self) -> bool:
        """Whether nothing was found to be faster."""
        return self.settings == self.default

    def measured(self) -> dict[str, Any]:
        """Return the replay of the choice and of the default, as `bench speed --json` has it."""
        named = {"chosen": self.settings, "default": self.default}
        return {
            name: self.runs[settings].to_dict()
            for name, settings in named.items()
            if settings in self.runs
        }


def choose(
    bench: TuningBench,
    default: Settings,
    candidates: Sequence[Settings],
    config: TuneConfig,
    can_split: bool,
) -> Choice:
    """Return the fastest settings of a model.

    default, candidates: without a batch, as `candidates_for` gives them; can_split: likewise.
    Raises BudgetError where nothing keeps the latency limit.
    """
    start = bench.now
    plain = replace(default, batch=None)
    budget = config.budget_s
    usable, skipped = bench.open_all(plain, candidates, start + 0.4 * budget)
    end = start + budget
    if config.latency_limit_ms is None:
        found = _for_throughput(bench, plain, usable, end, budget, can_split)
    else:
        found = _for_latency(bench, plain, usable, end, budget, config)
    return replace(found, skipped=(*skipped, *found.skipped))


def _for_throughput(
    bench: TuningBench,
    plain: Settings,
    usable: Sequence[Settings],
    end: float,
    budget: float,
    can_split: bool,
) -> Choice:
    default = replace(plain, batch=DEFAULT_BATCH)
    at_once = [replace(s, batch=max(DEFAULT_BATCH, s.streams)) for s in usable]

    def measure(some: Sequence[Settings], seconds: float) -> dict[Settings, float]:
        bench.keep(some)
        runs = bench.times(some, default, seconds, f"{len(some)} candidates")
        return {settings: run.speedup.estimate for settings, run in runs.items()}

    left = max(end - bench.now, 0.6 * budget)
    rungs = successive_halving(at_once, default, measure, _FINALISTS, 0.4 * left)
    best = rungs[-1].best(_FINALISTS) if rungs else [default]
    left = max(end - bench.now, 0.4 * budget)
    wanted, skipped = _affordable(bench, best, left / 6, can_split)
    more = successive_halving(wanted, default, measure, 1, 0.5 * left)
    tried = (*rungs, *more)
    winner = (more or rungs)[-1].best(1)[0] if tried else default
    if winner == default:
        return Choice(default, default, "nothing was faster than the default", {}, tried, skipped)
    bench.keep((default, winner))
    left = max(end - bench.now, 0.2 * budget)
    runs = bench.times((default, winner), default, left, "the choice beside the default")
    return replace(_kept_if_faster(default, winner, runs), tried=tried, skipped=skipped)


def _affordable(
    bench: TuningBench, best: Sequence[Settings], seconds: float, can_split: bool
) -> tuple[list[Settings], tuple[Skipped, ...]]:
    """Return the best, and other batches of theirs that can all be compared in so many seconds."""
    sized = with_batches([replace(s, batch=None) for s in best], can_split, BATCHES)
    others = sorted((s for s in sized if s not in best), key=bench.call_s)
    skipped: list[Skipped] = []
    while others and least_seconds(map(bench.call_s, (*best, *others))) > seconds:
        longest = others.pop()
        reason = f"one call takes {bench.call_s(longest):.2g} s: too long for the time there is"
        skipped.append(Skipped(longest, reason))
    return [*best, *others], tuple(skipped)


def _kept_if_faster(
    default: Settings, winner: Settings, runs: Mapping[Settings, SpeedRun]
) -> Choice:
    ratio = runs[winner].speedup
    said = f"{winner}: {ratio.estimate:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}] of the default"
    if ratio.low > 1:
        return Choice(winner, default, said, runs)
    return Choice(default, default, f"{said} in the replay: that may be no gain", runs)


def _for_latency(
    bench: TuningBench,
    default: Settings,
    usable: Sequence[Settings],
    end: float,
    budget: float,
    config: TuneConfig,
) -> Choice:
    limit_ms = config.latency_limit_ms or 0.0
    slowest: dict[Settings, float] = {}

    def measure(some: Sequence[Settings], seconds: float) -> dict[Settings, float]:
        bench.keep(some)
        runs = bench.times(some, default, seconds, f"{len(some)} candidates")
        scores = {}
        for settings, run in runs.items():
            times = service_times(run)
            slowest[settings] = float(np.percentile(times, 99)) * 1e3
            rate = predicted_rate(times, settings.streams, limit_ms / 1e3, config.seed)
            scores[settings] = rate or -slowest[settings]
        return scores

    search_s = (1 - _REPLAY_SHARE) * budget
    left = max(end - _REPLAY_SHARE * budget - bench.now, 0.5 * search_s)
    tried = tuple(successive_halving(usable, default, measure, 2, left))
    winner = tried[-1].best(1)[0] if tried else default
    if tried and tried[-1].scores[0][1] < 0:
        raise _missed(limit_ms, min(slowest, key=lambda s: slowest[s]), min(slowest.values()))
    # The one whose calls are shortest may keep a limit that the one with most of them does not.
    last = [settings for settings, _ in tried[-1].scores] if tried else [default]
    quickest = min(last, key=lambda s: slowest.get(s, 0.0))
    some = list(dict.fromkeys((default, winner, quickest)))
    bench.keep(some)
    left = max(end - bench.now, _REPLAY_SHARE * budget)
    runs = bench.server(some, default, limit_ms, left)
    return replace(_most_within(default, runs, limit_ms), tried=tried)


def _most_within(default: Settings, runs: Mapping[Settings, SpeedRun], limit_ms: float) -> Choice:
    """Return the settings with the largest rate among those that keep the limit in every round."""
    kept = [settings for settings, run in runs.items() if run.met]
    if not kept:
        p99 = {settings: run.latency_ms["p99"].estimate for settings, run in runs.items()}
        nearest = min(p99, key=lambda s: p99[s])
        raise _missed(limit_ms, nearest, p99[nearest])
    winner = max(kept, key=lambda s: runs[s].images_per_s.estimate)
    if winner == default:
        return Choice(default, default, "nothing was faster than the default", runs)
    if default in kept:
        return _kept_if_faster(default, winner, runs)
    rate = runs[winner].images_per_s.estimate
    said = f"{winner}: {rate:.0f} images/s within the limit, which the default does not keep"
    return Choice(winner, default, said, runs)


def _missed(limit_ms: float, nearest: Settings, p99_ms: float) -> BudgetError:
    return BudgetError(
        f"no setting keeps p99 within {limit_ms:g} ms; the nearest ({nearest}) has a p99 of "
        f"{p99_ms:.3g} ms. Nothing was written.",
        "Allow more, or use a smaller model or image.",
    )
