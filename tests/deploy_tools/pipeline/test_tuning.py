"""The choice, with models whose times are known on a clock that only they move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.energy import EnergyMeter
from benchmarks.server import Tools
from benchmarks.statistics import Interval
from deploy_tools.errors import BudgetError, MissingDependencyError, UserError
from deploy_tools.pipeline.tuning import choose
from deploy_tools.pipeline.tuning_bench import (
    TEST_ROUNDS,
    TuningBench,
    least_seconds,
    rounds_in,
    seconds_of_search,
)
from deploy_tools.pipeline.tuning_choice import Choice, TuneConfig, kept_if_faster
from deploy_tools.runtimes import RuntimeConfig
from deploy_tools.tuning.settings import Settings

DEFAULT = Settings(batch=None)
ONE = replace(DEFAULT, threads=1)
IDLE = replace(DEFAULT, spinning=False)
OTHER = replace(DEFAULT, runtime="openvino")
Cost = Callable[[RuntimeConfig, int, float], float]


class World:
    """A clock, and sessions that take `cost(config, images, now)` milliseconds a call."""

    def __init__(self, cost: Cost, precision: Callable[[RuntimeConfig], str] | None = None) -> None:
        self.now = 1_000
        self.cost, self.precision = cost, precision or (lambda config: "int8+fp32")
        self.open: list[RuntimeConfig] = []
        self.opened: list[RuntimeConfig] = []
        self.most = 0

    def session(self, config: RuntimeConfig) -> Any:
        precision = self.precision(config)
        self.opened.append(config)
        self.open.append(config)
        self.most = max(self.most, len(self.open))
        self.now += 10_000_000

        def run(inputs: np.ndarray) -> tuple[np.ndarray]:
            assert config in self.open, "it was closed"
            self.now += round(1e6 * self.cost(config, len(inputs), self.now / 1e9))
            return (inputs,)

        return SimpleNamespace(
            run=run, close=lambda: self.open.remove(config), precision=precision,
            threads=config.threads or 2, streams=1, runtime=config.runtime,
        )  # fmt: skip

    def sleep(self, seconds: float) -> None:
        self.now += max(round(seconds * 1e9), 1_000)

    def bench(self) -> TuningBench:
        tools = Tools(lambda: self.now, self.sleep, lambda: None, EnergyMeter(reason="a test"))
        return TuningBench(self.session, np.zeros((64, 1, 2, 2), np.float32), tools)


def chosen(
    world: World,
    candidates: Sequence[Settings],
    config: TuneConfig | None = None,
    can_split: bool = True,
) -> Choice:
    with world.bench() as bench:
        found = choose(bench, DEFAULT, candidates, config or TuneConfig(seconds=20), can_split)
    assert world.open == []
    return found


def an_image(times: dict[Settings, float], fixed: float = 0.0) -> Cost:
    """So many milliseconds an image, and a call."""
    by_config = {settings.config(): time for settings, time in times.items()}
    return lambda config, images, now: fixed + by_config[untold(config)] * images


def untold(config: RuntimeConfig) -> RuntimeConfig:
    """Without what a session knows of the size of its calls, which changes nothing in most worlds."""
    return replace(config, part=0, fixed_batch=0)


def test_the_fastest_is_found_and_measured_beside_the_default() -> None:
    world = World(an_image({DEFAULT: 1.0, ONE: 1.5, IDLE: 0.9, OTHER: 0.5}))
    found = chosen(world, [DEFAULT, ONE, IDLE, OTHER])
    assert replace(found.settings, batch=None) == OTHER
    assert not found.is_default
    assert found.measured()["chosen"]["speedup"] == pytest.approx(2)
    assert found.measured()["default"]["batch"] == 8
    assert found.runs[found.settings].speedup.low > 1
    assert all(len(run.samples.slots) >= TEST_ROUNDS for run in found.runs.values())
    assert found.reason.endswith("2.00x [2.00, 2.00] of the default")
    assert world.opened.count(OTHER.config()) == 1  # it stays open while it is among the best


def test_a_batch_that_spreads_the_cost_of_a_call_is_found() -> None:
    world = World(an_image({DEFAULT: 0.1, ONE: 0.2}, fixed=3.0))
    found = chosen(world, [DEFAULT, ONE])
    assert found.settings == replace(DEFAULT, batch=64)
    assert found.runs[found.settings].batch == 64
    # 3 / 8 + 0.1 ms an image against 3 / 64 + 0.1
    assert found.measured()["chosen"]["speedup"] == pytest.approx((3 / 8 + 0.1) / (3 / 64 + 0.1))


def test_a_default_that_is_no_candidate_stays_as_it_is() -> None:
    """Another batch would make it faster, but it is there to compare with."""
    found = chosen(World(an_image({DEFAULT: 0.1, OTHER: 0.3}, fixed=3.0)), [OTHER])
    assert found.settings == replace(OTHER, batch=64)
    for rung in found.tried:
        assert [s for s, _ in rung.scores if s.runtime == "onnxruntime"] == [found.default]
    assert chosen(World(an_image({DEFAULT: 0.1, OTHER: 9.0}, fixed=3.0)), [OTHER]).is_default


def test_a_session_that_knows_the_batch_is_taken_where_that_is_faster() -> None:
    def cost(config: RuntimeConfig, images: int, now: float) -> float:
        assert config.fixed_batch in (0, images)
        return images * (0.8 if config.fixed_batch else 1.0)

    found = chosen(World(cost), [DEFAULT])
    assert found.settings.fixed
    assert found.settings.config().fixed_batch == found.settings.batch
    assert found.measured()["chosen"]["speedup"] == pytest.approx(1.25)
    slower = World(lambda config, images, now: images * (1.2 if config.fixed_batch else 1.0))
    assert not chosen(slower, [DEFAULT]).settings.fixed


def test_streams_may_take_smaller_parts_of_a_batch() -> None:
    both = replace(DEFAULT, threads=2, streams=2)

    def cost(config: RuntimeConfig, images: int, now: float) -> float:
        return images * {(2, 4): 0.5, (2, 0): 0.7}.get((config.streams, config.part), 1.0)

    found = chosen(World(cost), [DEFAULT, both])
    assert (found.settings.streams, found.settings.part) == (2, 4)


def test_nothing_is_told_to_what_is_no_candidate() -> None:
    world = World(lambda config, images, now: images * (0.5 if config.fixed_batch else 1.0))
    found = chosen(world, [OTHER])
    assert found.settings.runtime == "openvino"
    assert not [c for c in world.opened if c.runtime == "onnxruntime" and c.fixed_batch]


def test_what_cannot_be_told_is_left_out_with_the_reason() -> None:
    def precision(config: RuntimeConfig) -> str:
        if config.fixed_batch:
            raise UserError("the batch cannot be fixed")
        return "int8+fp32"

    found = chosen(World(an_image({DEFAULT: 1.0, ONE: 0.5}), precision), [DEFAULT, ONE])
    assert found.settings.threads == 1
    assert {s.reason for s in found.skipped if s.settings.fixed} == {"the batch cannot be fixed"}


def test_a_small_batch_wins_where_large_ones_are_slow() -> None:
    def cost(config: RuntimeConfig, images: int, now: float) -> float:
        return images * (0.5 if images <= 2 else 1.0)

    assert chosen(World(cost), [DEFAULT]).settings.batch in (1, 2)


def test_the_default_stays_where_nothing_is_faster() -> None:
    world = World(an_image({DEFAULT: 1.0, ONE: 1.5, OTHER: 1.1}))
    found = chosen(world, [DEFAULT, ONE, OTHER])
    assert found.is_default
    assert found.settings == replace(DEFAULT, batch=8)
    found = chosen(world, [DEFAULT, ONE, OTHER], can_split=False)
    assert found.reason == "nothing was faster than the default"


def test_a_candidate_that_was_only_lucky_is_not_kept() -> None:
    """Twice as fast while it is searched for, slower than the default in the replay."""
    stages: list[str] = []

    def cost(config: RuntimeConfig, images: int, now: float) -> float:
        replay = stages[-1:] == ["the choice beside the default"]
        return images * (1.0 if config != OTHER.config() else 1.05 if replay else 0.5)

    bench = World(cost).bench()
    times_of = bench.times

    def times_seen(*args: Any) -> Any:
        stages.append(args[3])
        return times_of(*args)

    bench.times = times_seen  # type: ignore[method-assign]
    with bench:
        found = choose(bench, DEFAULT, [DEFAULT, OTHER], TuneConfig(seconds=20), True)
    assert found.is_default
    assert found.settings == replace(DEFAULT, batch=8)
    assert "in the replay: that may be no gain" in found.reason
    (loser,) = set(found.runs) - {found.default}
    assert found.runs[loser].speedup.high < 1


def test_a_gain_that_noise_hides_is_not_kept() -> None:
    generator = np.random.default_rng(1)

    def cost(config: RuntimeConfig, images: int, now: float) -> float:
        mean = 0.995 if config == OTHER.config() else 1.0
        return images * mean * float(np.exp(generator.normal(0, 0.3)))

    found = chosen(World(cost), [DEFAULT, OTHER], can_split=False)
    assert found.is_default


@pytest.mark.parametrize(("low", "kept"), [(1.001, True), (1.0, False), (0.98, False)])
def test_only_an_interval_above_1_counts(low: float, kept: bool) -> None:
    found = kept_if_faster(DEFAULT, OTHER, Interval(1.05, low, 1.1), {})
    assert (found.settings == OTHER, found.is_default) == (kept, not kept)


def test_what_computes_in_another_precision_is_left_out() -> None:
    world = World(
        an_image({DEFAULT: 1.0, OTHER: 0.1}),
        lambda config: "int8+bf16" if config.runtime == "openvino" else "int8+fp32",
    )
    found = chosen(world, [DEFAULT, OTHER])
    assert found.settings.runtime == "onnxruntime"
    (left,) = found.skipped
    assert left.settings == OTHER
    assert left.reason == "it would run in int8+bf16, the default runs in int8+fp32"


def test_a_runtime_that_is_missing_is_named_once() -> None:
    def precision(config: RuntimeConfig) -> str:
        if config.runtime == "openvino":
            raise MissingDependencyError("it is not installed.")
        if not config.spinning:
            raise UserError("no such option.")
        return "fp32"

    world = World(an_image({DEFAULT: 1.0, ONE: 0.5}), precision)
    found = chosen(world, [DEFAULT, OTHER, replace(OTHER, pinned=False), IDLE, ONE])
    assert [(s.settings, s.reason) for s in found.skipped] == [
        (OTHER, "it is not installed."), (IDLE, "no such option.")
    ]  # fmt: skip
    assert replace(found.settings, batch=None) == ONE


def test_no_more_are_opened_than_time_and_memory_allow() -> None:
    many = [replace(DEFAULT, threads=n) for n in range(1, 9)]
    world = World(lambda config, images, now: images * 1.0)
    bench = world.bench()
    bench.most_copies = 4
    with bench:
        usable, skipped = bench.open_all(DEFAULT, many, bench.now + 100)
        assert usable == [DEFAULT, *many[:3]]
        assert {left.reason for left in skipped} == {
            "4 copies of the model are in memory, it would take 1 more, and there may be 4"
        }
        bench.keep([DEFAULT])
        wide = [
            replace(DEFAULT, threads=8, streams=n, pinned=p) for n in (2, 4) for p in (True, None)
        ]
        usable, skipped = bench.open_all(DEFAULT, [*wide, ONE], bench.now + 100)
        assert usable == [DEFAULT, wide[0], ONE]  # a stream of several threads has its own copy
        assert [left.reason[:43] for left in skipped] == [
            "3 copies of the model are in memory, it wou"
        ] * 3
        bench.keep([DEFAULT])
        usable, skipped = bench.open_all(DEFAULT, many, bench.now - 1)
    assert usable == [DEFAULT]
    assert {left.reason for left in skipped} == {"the time was spent with opening the others"}


def test_a_default_that_does_not_run_ends_it() -> None:
    def precision(config: RuntimeConfig) -> str:
        raise MissingDependencyError("no runtime.")

    with pytest.raises(MissingDependencyError, match="no runtime"):
        chosen(World(lambda *_: 1.0, precision), [DEFAULT, ONE])


def test_about_as_long_as_it_may_take() -> None:
    for seconds in (10.0, 60.0):
        world = World(an_image({DEFAULT: 1.0, ONE: 1.5, IDLE: 0.9, OTHER: 0.5}))
        begin = world.now
        chosen(world, [DEFAULT, ONE, IDLE, OTHER], TuneConfig(seconds=seconds))
        assert 0.4 * seconds < (world.now - begin) / 1e9 < 1.3 * seconds


def test_calls_that_are_too_long_for_the_time_are_left_out() -> None:
    world = World(an_image({DEFAULT: 40.0, OTHER: 20.0}))
    begin = world.now
    found = chosen(world, [DEFAULT, OTHER], TuneConfig(seconds=20))
    assert replace(found.settings, batch=None) == OTHER
    assert any("too long for the time" in left.reason for left in found.skipped)
    assert (world.now - begin) / 1e9 < 40


def test_sessions_of_losers_are_closed_while_the_search_goes_on() -> None:
    many = [replace(DEFAULT, threads=n) for n in range(1, 16)]
    times = {settings: 1 + n for n, settings in enumerate(many)}
    world = World(an_image(times | {DEFAULT: 20.0}))
    open_then: list[int] = []
    bench = world.bench()
    times_of = bench.times

    def times_seen(*args: Any) -> Any:
        open_then.append(len(world.open))
        return times_of(*args)

    bench.times = times_seen  # type: ignore[method-assign]
    with bench:
        choose(bench, DEFAULT, many, TuneConfig(seconds=20), False)
    assert open_then[0] == 16
    assert open_then[1] <= 9
    # The best two, what knows the size of its calls, and the default.
    assert max(open_then[2:]) <= 6
    assert open_then[-1] == 2


def test_a_batch_that_changes_results_stays() -> None:
    world = World(an_image({DEFAULT: 0.1, ONE: 0.2}, fixed=3.0))
    assert chosen(world, [DEFAULT, ONE], can_split=False).settings.batch == 8


# With a latency limit: rates of random arrivals.


def limit(ms: float, seconds: float | None = None) -> TuneConfig:
    return TuneConfig(ms, seconds)


def test_the_most_within_the_limit_is_found() -> None:
    world = World(an_image({DEFAULT: 4.0, ONE: 6.0, OTHER: 2.0}))
    found = chosen(world, [DEFAULT, ONE, OTHER], limit(15))
    assert found.settings == OTHER  # without a batch: single images arrive
    assert set(found.runs) == {DEFAULT, OTHER}
    run = found.runs[OTHER]
    assert len(run.samples.slots) >= TEST_ROUNDS
    assert (run.scenario, run.met) == ("server", True)
    assert run.speedup.low > 1.5
    assert run.latency_ms["p99"].estimate <= 15


def test_the_default_stays_within_a_limit_too() -> None:
    found = chosen(World(an_image({DEFAULT: 2.0, ONE: 3.0})), [DEFAULT, ONE], limit(15))
    assert found.is_default
    assert found.settings.batch is None


def test_a_limit_that_the_default_does_not_keep() -> None:
    found = chosen(World(an_image({DEFAULT: 8.0, OTHER: 2.0})), [DEFAULT, OTHER], limit(6))
    assert found.settings == OTHER
    assert "which the default does not keep" in found.reason


def test_a_limit_that_nothing_keeps_is_exit_4_and_says_how_near() -> None:
    world = World(an_image({DEFAULT: 8.0, ONE: 9.0, OTHER: 5.0}))
    with pytest.raises(BudgetError) as caught:
        chosen(world, [DEFAULT, ONE, OTHER], limit(4))
    assert caught.value.exit_code == 4
    assert "no setting keeps p99 within 4 ms" in caught.value.message
    assert "nearest (openvino, every core) has a p99 of 5 ms" in caught.value.message
    assert world.now / 1e9 < 30  # seconds: what is hopeless is not searched at length


def test_a_limit_that_only_holds_without_a_queue_is_judged_by_the_measurement() -> None:
    """Stalls that come in the replay only: predicted to be kept, and then it is not."""

    searching: list[bool] = []
    bench = World(lambda *_: 9.0 if searching else 2.0).bench()
    server_of = bench.server

    def server(*args: Any) -> Any:
        searching.append(True)
        return server_of(*args)

    bench.server = server  # type: ignore[method-assign]
    with bench, pytest.raises(BudgetError, match="no setting keeps p99 within 6 ms"):
        choose(bench, DEFAULT, [DEFAULT, ONE], limit(6), True)
    assert searching


def test_a_time_that_is_too_short_for_such_calls_is_refused() -> None:
    """A probe has a hundred queries, whatever the limit."""
    assert TuneConfig(4, 40).budget_s() == 40
    with pytest.raises(UserError, match="cannot be seen in 40 s"):
        chosen(World(lambda *_: 3.5), [DEFAULT, ONE], limit(4, 40))


@pytest.mark.parametrize(("image_ms", "limit_ms"), [(1.0, 20.0), (20.0, 50.0), (20.0, 21.0)])
def test_how_long_a_search_takes_is_known(image_ms: float, limit_ms: float) -> None:
    world = World(lambda *_: image_ms)
    with world.bench() as bench:
        bench.image_s(DEFAULT)
        begin = world.now
        rates = {DEFAULT: 0.5e3 / image_ms}
        run = bench.server(rates, DEFAULT, limit_ms, 0, "a test")[DEFAULT]
        took = (world.now - begin) / 1e9 / len(run.samples.slots)
        found = run.images_per_s.estimate if run.has_rate else 0.1e3 / image_ms
        estimate = seconds_of_search(limit_ms, bench.image_s(DEFAULT), found)
    assert 0.5 * took < estimate < 2 * took


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"seconds": 0}, "seconds must lie"),
        ({"seconds": float("nan")}, "seconds must lie"),
        ({"latency_limit_ms": 0}, "latency limit must lie"),
        ({"latency_limit_ms": 1e6}, "latency limit must lie"),
        ({"latency_limit_ms": 100, "seconds": 60}, "cannot be seen in 60 s"),
    ],
)
def test_what_means_nothing_is_refused(values: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        TuneConfig(**values)


def test_a_long_limit_takes_its_time() -> None:
    assert TuneConfig().budget_s() == 60
    assert TuneConfig(5).budget_s() == 60
    assert TuneConfig(15).budget_s() == pytest.approx(90)
    assert TuneConfig(100).budget_s() == pytest.approx(600)
    assert TuneConfig(100, 700).budget_s() == 700
    assert TuneConfig(15).budget_s(0.014) > 200


def test_rounds_and_slots_fit_the_time() -> None:
    for seconds, calls in ((30, [0.001] * 10), (3, [0.01, 0.2]), (20, [0.3, 0.16])):
        rounds, slot = rounds_in(seconds, calls)
        assert 3 <= rounds <= 30
        assert rounds * sum(call + max(slot, call) for call in calls) <= seconds
    assert rounds_in(0.1, [1.0, 2.0]) == (3, 0.0)
    assert rounds_in(0.1, [1.0, 2.0], TEST_ROUNDS) == (6, 0.0)
    assert least_seconds([0.1, 0.2]) == pytest.approx(3 * 2 * 0.3)
