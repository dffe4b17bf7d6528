"""The choice with a latency limit, on calls and searches whose results are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.samples import SampleSet, Slot
from benchmarks.speed import SpeedRun
from benchmarks.statistics import paired_ratio_interval
from deploy_tools.errors import BudgetError
from deploy_tools.pipeline.tuning_bench import MIN_ROUNDS, TEST_ROUNDS
from deploy_tools.pipeline.tuning_choice import Choice, TuneConfig
from deploy_tools.pipeline.tuning_latency import choose_within
from deploy_tools.tuning.settings import Settings

DEFAULT = Settings(batch=None)
MANY = replace(DEFAULT, threads=8, streams=8)
QUICK = replace(DEFAULT, threads=1)
OTHERS = [replace(DEFAULT, threads=n) for n in range(2, 8)]
LIMIT = 10.0


def slots(times_ms: Sequence[Sequence[float]], rates: Sequence[float | None]) -> tuple[Slot, ...]:
    found = []
    for number, (times, rate) in enumerate(zip(times_ms, rates, strict=True)):
        durations = np.array(times) * 1e6
        starts = np.concatenate([[0], np.cumsum(durations)[:-1]])
        found.append(Slot(number, 0, starts.astype(np.int64), durations.astype(np.int64), rate))
    return tuple(found)


def run_of(name: str, scenario: str, found: tuple[Slot, ...]) -> SampleSet:
    limit = LIMIT if scenario == "server" else None
    return SampleSet(name, scenario, 1, 1, 1, found, latency_limit_ms=limit)


class Bench:
    """Calls take `calls_ms` of their settings, one number a call; searches find `rates`.

    rates: by stage, then by settings; one number a round, 0 where the limit was missed.
    """

    now = 0.0

    def __init__(
        self,
        calls_ms: Mapping[Settings, Sequence[float]],
        rates: Mapping[str, Mapping[Settings, Sequence[float]]],
    ) -> None:
        self.calls_ms, self.rates = calls_ms, rates
        self.told: list[Settings] = []
        self.searched: list[tuple[str, set[Settings], int]] = []
        self.timed: list[set[Settings]] = []

    def keep(self, some: Any) -> None:
        pass

    def open_told(self, default: Any, best: Any, candidates: Any, seconds: float) -> Any:
        return [s for s in self.told if replace(s, fixed=False) in candidates], ()

    def image_s(self, settings: Settings) -> float:
        return float(np.median(self.calls_ms[settings])) / 1e3 / settings.streams

    def times(self, some: Sequence[Settings], default: Settings, seconds: float, stage: str) -> Any:
        self.timed.append(set(some))
        sets = {s: run_of(str(s), "offline", slots([self.calls_ms[s]], [None])) for s in some}
        return {s: SpeedRun(found, sets[default]) for s, found in sets.items()}

    def server(
        self, rates: Mapping[Settings, float], baseline: Settings, limit_ms: float, seconds: float,
        stage: str, least: int = MIN_ROUNDS,
    ) -> Any:  # fmt: skip
        self.searched.append((stage, set(rates), least))
        sets = {}
        for one in rates:
            given = self.rates[stage][one]
            times = [[1.0] * 200 if rate else [2 * LIMIT] * 200 for rate in given]
            sets[one] = run_of(str(one), "server", slots(times, [rate or 1.0 for rate in given]))
        return {s: SpeedRun(found, sets[baseline]) for s, found in sets.items()}


BESIDE, TWO = "the choice beside the default", "the best two"
SIX = [100.0, 101, 99, 100, 102, 98]
CALLS = {DEFAULT: [5.0] * 50, MANY: [9.0] * 50, QUICK: [2.0] * 50} | {s: [8.0] * 50 for s in OTHERS}


def chosen(bench: Bench, *usable: Settings) -> Choice:
    made: Any = bench
    opened = [DEFAULT, *usable]
    return choose_within(made, DEFAULT, opened, opened, 0.0, TuneConfig(LIMIT))


def more(rates: Sequence[float], factor: float) -> list[float]:
    return [factor * rate for rate in rates]


def test_the_two_are_told_apart_in_rounds_of_their_own() -> None:
    lucky = {TWO: {MANY: [300.0] * 3, QUICK: [250.0] * 3}}
    bench = Bench(CALLS, lucky | {BESIDE: {DEFAULT: SIX, MANY: more(SIX, 0.9)}})
    found = chosen(bench, MANY, QUICK)
    assert bench.searched == [
        (TWO, {MANY, QUICK}, MIN_ROUNDS), (BESIDE, {DEFAULT, MANY}, TEST_ROUNDS)
    ]  # fmt: skip
    assert found.is_default  # however well it did in the rounds that chose it
    assert set(found.runs) == {DEFAULT, MANY}


def test_sessions_for_single_images_alone_are_tried_with_the_best() -> None:
    own = replace(QUICK, fixed=True)
    rates = {TWO: {MANY: [300.0] * 3, own: [400.0] * 3}}
    bench = Bench(CALLS | {own: [1.0] * 50}, rates | {BESIDE: {DEFAULT: SIX, own: more(SIX, 2)}})
    bench.told = [own]
    found = chosen(bench, MANY, QUICK)
    assert found.settings == own
    assert own in bench.timed[-1]
    assert QUICK in bench.timed[-1]


def test_of_two_the_one_that_keeps_the_limit_goes_on() -> None:
    first = {TWO: {MANY: [900.0, 0, 0], QUICK: [250.0] * 3}}
    bench = Bench(CALLS, first | {BESIDE: {DEFAULT: SIX, QUICK: more(SIX, 2)}})
    found = chosen(bench, MANY, QUICK)
    assert found.settings == QUICK
    assert "2.00x [2.00, 2.00] of the default" in found.reason


def test_the_shortest_calls_of_all_go_on_though_the_first_rung_drops_them() -> None:
    """Few images a second, since it has one stream: others are predicted to do better."""
    streams = [replace(MANY, pinned=pinned) for pinned in (True, False)]
    many = [*streams, *(replace(s, spinning=False) for s in streams), MANY]
    calls = CALLS | {s: [4.0 + n] * 50 for n, s in enumerate(many)}
    kept = {s: [250.0] * 3 for s in (*many, QUICK)}
    bench = Bench(calls, {TWO: kept, BESIDE: dict.fromkeys((DEFAULT, *many, QUICK), SIX)})
    chosen(bench, *many, QUICK, *OTHERS)
    assert QUICK not in bench.timed[-1]
    assert bench.searched[0] == (TWO, {streams[0], QUICK}, MIN_ROUNDS)


def test_one_slow_call_of_a_few_is_no_reason_to_give_up() -> None:
    calls = {DEFAULT: [5.0, 5, 5, 40], QUICK: [4.0, 4, 4, 40]}
    bench = Bench(calls, {BESIDE: {DEFAULT: SIX, QUICK: more(SIX, 1.5)}})
    assert chosen(bench, QUICK).settings == QUICK
    slow = {DEFAULT: [15.0, 15, 15, 5], QUICK: [14.0, 14, 14, 5]}
    with pytest.raises(BudgetError, match="nearest"):
        chosen(Bench(slow, {}), QUICK)


@pytest.mark.parametrize(
    ("default", "rival", "kept", "said"),
    [
        (SIX, more(SIX, 1.2), True, "1.20x"),
        (SIX, more(SIX, 0.9), False, "may be no gain"),
        # A stall in one round of seven: the others are compared.
        ([*SIX, 0], [*more(SIX, 1.2), 120], True, "1.20x"),
        ([*SIX, 0], [*more(SIX, 0.9), 120], False, "may be no gain"),
        ([*SIX, 100], [*more(SIX, 1.2), 0], True, "1.20x"),
        # Too few rounds are left.
        ([*SIX[:5], 0], more(SIX, 1.2), False, "together in 5 of 6 rounds: too few"),
        (SIX, [*more(SIX[:2], 9), 0, 0, 0, 0], False, "together in 2 of 6 rounds"),
        # The default does not keep the limit.
        ([100.0, 0, 0, 0, 0, 0], SIX, True, "does not keep (in 1 of 6 rounds)"),
    ],
)
def test_rounds_that_miss_the_limit(
    default: list[float], rival: list[float], kept: bool, said: str
) -> None:
    bench = Bench(CALLS, {BESIDE: {DEFAULT: default, QUICK: rival}})
    found = chosen(bench, QUICK)
    assert (found.settings == QUICK, found.is_default) == (kept, not kept)
    assert said in found.reason
    assert set(found.measured()) == ({"chosen", "default"})


def test_a_limit_that_most_rounds_miss_is_exit_4() -> None:
    bench = Bench(CALLS, {BESIDE: {DEFAULT: [0.0] * 6, QUICK: [100.0] * 3 + [0.0] * 3}})
    with pytest.raises(BudgetError, match="no setting keeps p99 within 10 ms") as caught:
        chosen(bench, QUICK)
    assert caught.value.exit_code == 4


def test_the_default_alone_is_searched_too() -> None:
    bench = Bench(CALLS, {"the default": {DEFAULT: [100.0] * 3}})
    assert chosen(bench).is_default
    with pytest.raises(BudgetError):
        chosen(Bench(CALLS, {"the default": {DEFAULT: [0.0] * 3}}))


@pytest.mark.parametrize("rounds", [TEST_ROUNDS, 8, 10])
def test_of_two_that_are_equal_one_is_seldom_kept(rounds: int) -> None:
    generator = np.random.default_rng(rounds)
    trials = 300
    kept = 0
    for _ in range(trials):
        above, below = np.exp(generator.normal(0, 0.1, (2, rounds)))
        kept += paired_ratio_interval(above, below, resamples=300).low > 1
    # One side of a 95 % interval, and three standard deviations of the count.
    assert kept <= trials * 0.025 + 3 * (trials * 0.025 * 0.975) ** 0.5
