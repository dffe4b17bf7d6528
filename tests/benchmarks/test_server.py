"""The server scenario: arrivals, the queue, and the search for the largest rate."""

import json
import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import server
from benchmarks.energy import EnergyMeter
from benchmarks.samples import read_samples
from benchmarks.server import Queue, RateSearch, ServerConfig, Tools, poisson_arrivals, serve
from benchmarks.speed import SpeedConfig, measure_speed, save_samples
from deploy_tools.errors import UserError
from deploy_tools.runtimes import open_session

NS = 1_000_000


class World:
    """A clock that moves only while a model runs or a worker sleeps."""

    def __init__(self):
        self.now, self.log = 5_000, []

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.now += max(round(seconds * 1e9), 1_000)

    def wait(self):
        self.log.append("wait")

    def session(self, name, times_ms, streams=1):
        """A model whose calls take what the iterator `times_ms` says."""

        def run(inputs):
            self.now += round(NS * next(times_ms))
            self.log.append(name)
            return (inputs,)

        return SimpleNamespace(run=run, threads=1, streams=streams)

    @property
    def tools(self):
        return Tools(self.clock, self.sleep, self.wait, EnergyMeter(reason="a test"))


def always(ms):
    while True:
        yield ms


def exponential(mean_ms, seed):
    generator = np.random.default_rng(seed)
    while True:
        yield from generator.exponential(mean_ms, 1000)


def batch(n):
    return np.zeros((n, 1, 4, 4), np.float32)


def measured(world, sessions, settings, **more):
    config = SpeedConfig(("server",), warmup=0, settle=0, server=settings, **more)
    runs = measure_speed(
        sessions, batch, next(iter(sessions)), config,
        clock=world.clock, wait=world.wait, sleep=world.sleep, meter=EnergyMeter(reason="a test"),
    )  # fmt: skip
    return {run.variant: run for run in runs}


def lindley(arrivals, services):
    """Latencies in a first-come-first-served queue of one server (Lindley's recursion)."""
    latencies, free = [], 0
    for arrival, service in zip(arrivals, services, strict=True):
        free = max(free, arrival) + service
        latencies.append(free - arrival)
    return np.array(latencies)


# Arrivals.


def test_poisson_arrivals_have_exponential_gaps_of_the_right_mean():
    gaps = np.diff(poisson_arrivals(40_001, 250.0, (1,))) / 1e9
    error = 1 / math.sqrt(len(gaps))
    assert gaps.mean() * 250 == pytest.approx(1, abs=4 * error)
    assert gaps.std() * 250 == pytest.approx(1, abs=6 * error)
    for t in (0.1, 1.0, 3.0):  # P(gap > t / rate) = exp(-t)
        share = math.exp(-t)
        spread = math.sqrt(share * (1 - share) / len(gaps))
        assert (gaps > t / 250).mean() == pytest.approx(share, abs=4 * spread)


def test_arrivals_in_disjoint_seconds_are_a_poisson_count():
    arrivals = poisson_arrivals(100_000, 100.0, (2,)) / 1e9
    counts = np.bincount(arrivals.astype(int))[:900]
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.2)
    assert abs(np.corrcoef(counts[:-1], counts[1:])[0, 1]) < 0.15


def test_arrivals_are_reproducible_by_seed_and_scale_with_the_rate():
    first = poisson_arrivals(500, 100.0, (0, 3, 1))
    np.testing.assert_array_equal(first, poisson_arrivals(500, 100.0, (0, 3, 1)))
    assert (first != poisson_arrivals(500, 100.0, (0, 3, 2))).any()
    np.testing.assert_array_equal(first[:200], poisson_arrivals(200, 100.0, (0, 3, 1)))
    np.testing.assert_allclose(first / 2, poisson_arrivals(500, 200.0, (0, 3, 1)), atol=1)


# The queue.


def test_latency_counts_from_the_arrival_and_holds_the_wait_in_line():
    world = World()
    services = np.random.default_rng(1).exponential(3, 2000)
    session = world.session("a", iter(services))
    arrivals = poisson_arrivals(2000, 250.0, (7,))
    queue = Queue(arrivals)
    serve(queue, lambda: session.run(None), 1, world.tools)
    starts, latencies = queue.served()
    np.testing.assert_array_equal(starts, arrivals)
    wanted = lindley(arrivals, np.rint(services * NS).astype(np.int64))
    # A sleep of the test's clock ends up to 1 us late.
    assert np.abs(latencies - wanted).max() <= 1_000
    assert np.median(latencies) > 1.5 * np.median(services) * NS


def test_a_stall_is_charged_to_everybody_who_arrives_meanwhile():
    """Coordinated omission: one call of 200 ms, 1 ms otherwise, 400 queries a second."""
    world = World()
    times = [1.0] * 2000
    times[500] = 200.0
    session = world.session("a", iter(times))
    arrivals = poisson_arrivals(2000, 400.0, (0,))
    queue = Queue(arrivals)
    serve(queue, lambda: session.run(None), 1, world.tools)
    _, latencies = queue.served()
    arrived = ((arrivals > arrivals[500]) & (arrivals < arrivals[500] + 150 * NS)).sum()
    assert arrived > 40
    # All of those waited for 50 ms or more; a generator that waits for replies sees one slow call.
    assert (latencies > 50 * NS).sum() >= arrived
    assert (np.array(times) > 50).sum() == 1
    assert latencies[-1] < 20 * NS  # the line has gone


def test_an_idle_worker_waits_for_the_arrival_and_starts_no_query_before_it():
    world = World()
    began = []
    session = world.session("a", always(1.0))
    arrivals = np.array([10, 20, 21, 60]) * NS
    queue = Queue(arrivals)

    def run():
        began.append(world.now)
        session.run(None)

    begin = serve(queue, run, 1, world.tools)
    offsets = (np.array(began) - begin) / NS
    np.testing.assert_allclose(offsets, [10, 20, 21, 60], atol=0.01)


def test_a_lost_rate_is_not_served_to_its_end():
    world = World()
    session = world.session("a", always(5.0))
    queue = Queue(np.zeros(1000, np.int64), 100 * NS, 3)
    serve(queue, lambda: session.run(None), 1, world.tools)
    _, latencies = queue.served()
    assert (latencies > 100 * NS).sum() == 4
    assert len(latencies) == 24


def test_several_workers_share_one_line():
    """With 3 workers 3 calls run at once: each waits at the barrier until 3 are there."""
    barrier, places, lock = threading.Barrier(3), [], threading.Lock()

    def run():
        place = barrier.wait(timeout=20)
        with lock:
            places.append(place)

    queue = Queue(np.zeros(12, np.int64))
    tools = Tools(lambda: 7, lambda seconds: None, lambda: None, EnergyMeter())
    serve(queue, run, 3, tools)
    assert sorted(places) == [0] * 4 + [1] * 4 + [2] * 4
    assert len(queue.served()[0]) == 12


def test_what_a_worker_raises_is_raised():
    def run():
        raise UserError("the device is gone.")

    tools = Tools(lambda: 7, lambda seconds: None, lambda: None, EnergyMeter())
    for workers in (1, 2):
        with pytest.raises(UserError, match="device is gone"):
            serve(Queue(np.zeros(100, np.int64)), run, workers, tools)


# The search.


def test_bisection_ends_next_to_the_limit():
    search = RateSearch(100.0)
    for _ in range(10):
        rate = search.rate
        search.tell(SimpleNamespace(rate=rate), rate <= 33.3)
    assert search.slot.rate == pytest.approx(33.3, abs=100 / 2**9)
    assert search.slot.rate <= 33.3
    never = RateSearch(100.0)
    for _ in range(3):
        never.tell(SimpleNamespace(rate=never.rate), False)
    assert never.slot.rate == pytest.approx(12.5)


def test_the_search_finds_the_known_limit_of_a_queue_with_exponential_service():
    """M/M/1: latencies are exponential with rate mu - lambda, so p99 = ln(100)/(mu - lambda).

    (Kleinrock, Queueing Systems I, section 3.2 and 5.7). mu = 1000/s and a limit of 10 ms:
    the largest rate is 1000 - ln(100) / 0.010 = 539.5 per second; with mu = 2000/s 1539.5.
    """
    world = World()
    sessions = {
        "slow": world.session("slow", exponential(1.0, 1)),
        "fast": world.session("fast", exponential(0.5, 2)),
    }
    settings = ServerConfig(latency_limit_ms=10, rounds=3, steps=7, queries=3000)
    runs = measured(world, sessions, settings)
    assert runs["slow"].images_per_s.estimate == pytest.approx(539.5, rel=0.15)
    assert runs["fast"].images_per_s.estimate == pytest.approx(1539.5, rel=0.08)
    assert runs["fast"].speedup.estimate == pytest.approx(1539.5 / 539.5, rel=0.2)
    for run in runs.values():
        assert run.met is True
        assert run.latency_ms["p99"].estimate <= 10
        assert run.images_per_s.low <= run.images_per_s.estimate <= run.images_per_s.high


def test_an_overloaded_rate_is_not_kept_however_short_the_slot():
    """1 ms a query: above 1,000 per second the line only grows, and the slot has to show it."""
    world = World()
    runs = measured(
        world, {"a": world.session("a", always(1.0))}, ServerConfig(40, rounds=3, steps=7)
    )
    assert 850 < runs["a"].images_per_s.estimate < 1020


def test_variants_are_interleaved_step_by_step_and_meet_the_same_arrivals():
    world = World()
    sessions = {name: world.session(name, always(2.0)) for name in ("a", "b", "c")}
    settings = ServerConfig(latency_limit_ms=15, rounds=4, steps=5)
    runs = measured(world, sessions, settings)
    slots = [part.split() for part in " ".join(world.log).split("wait")[1:]]
    assert all(len(set(names)) == 1 for names in slots)
    turns = [names[0] for names in slots]
    groups = [tuple(turns[i : i + 3]) for i in range(0, len(turns), 3)]
    assert len(groups) == 4 * (1 + 5)
    assert all(sorted(group) == ["a", "b", "c"] for group in groups)
    assert len(set(groups)) > 3
    # Equal models, equal arrivals: exactly equal rates in every round.
    assert runs["b"].speedup.ends() == pytest.approx([1, 1], abs=0.02)
    assert world.log.count("wait") == len(turns)


def test_the_same_seed_gives_the_same_rates():
    def rates(seed):
        world = World()
        sessions = {"a": world.session("a", always(2.0))}
        runs = measured(world, sessions, ServerConfig(latency_limit_ms=15), seed=seed)
        return [slot.rate for slot in runs["a"].samples.slots]

    assert rates(3) == rates(3)
    assert rates(3) != rates(4)


def test_a_limit_below_the_service_time_gives_no_rate_and_says_so():
    world = World()
    sessions = {
        "base": world.session("base", always(40.0)), "int8": world.session("int8", always(4.0))
    }  # fmt: skip
    runs = measured(world, sessions, ServerConfig(latency_limit_ms=15, rounds=3))
    base, fast = runs["base"], runs["int8"]
    assert (base.met, fast.met) == (False, True)
    assert "p50 at the lowest rates: 40.0 ms" in base.note
    values = base.to_dict()
    assert values["images_per_s"] is values["speedup"] is values["target_rate"] is None
    assert values["latency_limit_met"] is False
    assert fast.to_dict()["speedup"] is None  # a ratio to a rate that does not exist
    assert 50 < fast.images_per_s.estimate < 250
    with pytest.raises(UserError, match="no rate"):
        _ = base.images_per_s
    with pytest.raises(UserError, match="no speedup"):
        _ = fast.speedup
    assert "images/s" in str(fast)
    json.dumps(values, allow_nan=False)


def test_at_a_given_rate_nothing_is_searched():
    world = World()
    sessions = {"a": world.session("a", always(2.0)), "b": world.session("b", always(20.0))}
    settings = ServerConfig(latency_limit_ms=15, target_rate=100.0, rounds=3, queries=2000)
    runs = measured(world, sessions, settings)
    assert [slot.rate for slot in runs["a"].samples.slots] == [100.0] * 3
    assert runs["a"].sample_count == 3 * 2000
    assert (runs["a"].met, runs["b"].met) == (True, False)
    assert runs["a"].images_per_s.estimate == pytest.approx(100, rel=0.1)
    assert runs["b"].images_per_s.estimate == pytest.approx(50, rel=0.05)  # what it can serve
    assert runs["b"].latency_ms["p99"].estimate > 1000
    values = runs["b"].to_dict()
    assert (values["target_rate"], values["speedup"]) == (100.0, None)
    assert "above the limit of 15 ms" in runs["b"].note


def test_samples_come_back_with_their_rates_and_give_the_same_figures(tmp_path):
    world = World()
    sessions = {"a": world.session("a", exponential(1.0, 0))}
    run = measured(world, sessions, ServerConfig(latency_limit_ms=12, rounds=3))["a"]
    (found,) = read_samples(save_samples([run], tmp_path)["a"])
    assert (found.scenario, found.latency_limit_ms, found.target_rate) == ("server", 12, None)
    again = type(run)(found, found)
    assert again.images_per_s == run.images_per_s
    assert again.latency_ms == run.latency_ms
    assert again.met is True


def test_bad_settings_are_refused():
    for wrong in (
        {"latency_limit_ms": 0}, {"latency_limit_ms": math.nan}, {"target_rate": 0.0},
        {"rounds": 2}, {"steps": 0}, {"queries": 99}, {"seconds": -1.0},
    ):  # fmt: skip
        with pytest.raises(UserError):
            ServerConfig(**wrong)


def test_slots_are_long_enough_for_their_limit():
    config = ServerConfig(latency_limit_ms=20, queries=100)
    assert config.queries_at(10) == 100
    assert config.queries_at(1000) == 1000 * server.LIMITS_A_PROBE * 0.020


def test_every_stream_is_warm_before_it_is_timed():
    """A call of one query goes to one stream only."""
    world, sizes = World(), []
    session = world.session("a", always(1.0))
    session.streams, run = 8, session.run

    def seen(inputs):
        sizes.append(len(inputs))
        return run(inputs)

    session.run = seen
    config = SpeedConfig(("server",), warmup=1, settle=1, server=ServerConfig(target_rate=50.0))
    measure_speed(
        {"a": session}, batch, "a", config,
        clock=world.clock, wait=world.wait, sleep=world.sleep, meter=EnergyMeter(reason="a test"),
    )  # fmt: skip
    assert sizes[:2] == [8, 8]  # the warm-up, and the first slot's start
    assert sizes.count(8) == 1 + 5
    assert set(sizes[2:]) == {1, 8}


@pytest.mark.parametrize("streams", [1, 2])
def test_a_real_session_is_measured(tiny, streams):
    session = open_session(tiny)
    session.streams = streams
    settings = ServerConfig(latency_limit_ms=2, target_rate=2000.0, rounds=3)
    config = SpeedConfig(("server",), warmup=1, server=settings)
    (run,) = measure_speed(
        {"a": session}, lambda n: np.zeros((n, 1, 8, 8), np.float32), "a", config
    )
    assert run.samples.streams == streams
    assert run.sample_count == 3 * 200
    assert run.latency_ms["p50"].estimate > 0
    for slot in run.samples.slots:
        assert (np.diff(slot.starts_ns) >= 0).all()
