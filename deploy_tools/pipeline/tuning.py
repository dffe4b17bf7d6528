"""deploy-tools tune: how one file runs fastest on this machine, found by measuring.

Candidates are thinned out by successive halving, first those without a batch of their own, then the
best of them at several batches, then the best of those with sessions that are made for the size of
their calls. The one that is left is measured once more beside the default, on
fresh timings, since the best of many noisy ones looks better than it is. It is kept only where the
interval of that ratio lies above 1; otherwise the default is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from deploy_tools.pipeline.tuning_bench import TEST_ROUNDS, TuningBench, least_seconds
from deploy_tools.pipeline.tuning_choice import NOTHING, Choice, TuneConfig, kept_if_faster
from deploy_tools.pipeline.tuning_latency import choose_within
from deploy_tools.tuning.candidates import BATCHES, Skipped, with_batches
from deploy_tools.tuning.halving import successive_halving
from deploy_tools.tuning.settings import DEFAULT_BATCH, Settings

_FINALISTS = 3
_TOLD = 2
"""How many of the best are tried with sessions that know the size of a call."""
_OPENING = 0.4
_OPENING_WITHIN = 0.15
"""The share of the time in which candidates are opened; the latter with a latency limit."""


def choose(
    bench: TuningBench,
    default: Settings,
    candidates: Sequence[Settings],
    config: TuneConfig,
    can_split: bool,
) -> Choice:
    """Return the fastest settings of a model.

    default: what they have to be faster than. candidates: without a batch, as `candidates_for`
    gives them; can_split: likewise.
    Raises BudgetError where nothing keeps the latency limit, and UserError where the time is too
    short to see it.
    """
    start = bench.now
    plain = replace(default, batch=None)
    within = config.latency_limit_ms is not None
    until = start + (_OPENING_WITHIN if within else _OPENING) * config.budget_s()
    usable, skipped = bench.open_all(plain, candidates, until)
    if within:
        found = choose_within(bench, plain, usable, candidates, start, config)
    else:
        sizes = BATCHES if can_split else ()
        found = _for_throughput(bench, plain, usable, start, config.budget_s(), sizes, candidates)
    return replace(found, skipped=(*skipped, *found.skipped))


def _for_throughput(
    bench: TuningBench,
    plain: Settings,
    usable: Sequence[Settings],
    start: float,
    budget: float,
    sizes: Sequence[int],
    candidates: Sequence[Settings],
) -> Choice:
    """Return the settings with the most images a second.

    plain: the default, without a batch; where it is no candidate, only its own batch is measured.
    sizes: batches to try besides that one.
    """
    end = start + budget
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
    rivals = [s for s in best if replace(s, batch=None) in candidates]
    wanted, skipped = _affordable(bench, best, _sized(rivals, sizes), left / 6)
    more = successive_halving(wanted, default, measure, 1, 0.4 * left)
    best = (more or rungs)[-1].best(_TOLD) if more or rungs else [default]
    told, refused = bench.open_told(default, best, candidates, 0.15 * left)
    last = successive_halving([*best, *told], default, measure, 1, 0.2 * left)
    tried, skipped = (*rungs, *more, *last), (*skipped, *refused)
    winner = tried[-1].best(1)[0] if tried else default
    if winner == default:
        return Choice(default, default, NOTHING, {}, tried, skipped)
    bench.keep((default, winner))
    left = max(end - bench.now, 0.2 * budget)
    stage = "the choice beside the default"
    runs = bench.times((default, winner), default, left, stage, TEST_ROUNDS)
    found = kept_if_faster(default, winner, runs[winner].speedup, runs)
    return replace(found, tried=tried, skipped=skipped)


def _sized(some: Sequence[Settings], sizes: Sequence[int]) -> list[Settings]:
    """Return the settings at each of these batches."""
    return with_batches([replace(s, batch=None) for s in some], bool(sizes), sizes)


def _affordable(
    bench: TuningBench, best: Sequence[Settings], sized: Sequence[Settings], seconds: float
) -> tuple[list[Settings], tuple[Skipped, ...]]:
    """Return the best, and other batches of theirs that can all be compared in so many seconds."""
    others = sorted((s for s in sized if s not in best), key=bench.call_s)
    skipped: list[Skipped] = []
    while others and least_seconds(map(bench.call_s, (*best, *others))) > seconds:
        longest = others.pop()
        reason = f"one call takes {bench.call_s(longest):.2g} s: too long for the time there is"
        skipped.append(Skipped(longest, reason))
    return [*best, *others], tuple(skipped)
