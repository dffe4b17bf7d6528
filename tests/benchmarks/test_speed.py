import gc
import json
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import speed
from benchmarks.samples import read_samples
from benchmarks.speed import SpeedConfig, measure_speed, save_samples
from deploy_tools.errors import ArtifactError, MissingDependencyError, UserError
from deploy_tools.runtimes import open_session


class World:
    """A clock that moves only while a model runs, and a log of who ran."""

    def __init__(self):
        self.now, self.log, self.collecting = 1_000, [], []

    def clock(self):
        return self.now

    def wait(self):
        self.log.append("wait")

    def session(self, name, ms):
        """A model that takes `ms(call)` milliseconds an image."""
        calls = 0

        def run(inputs):
            nonlocal calls
            self.now += round(1e6 * ms(calls) * len(inputs))
            calls += 1
            self.log.append(name)
            self.collecting.append(gc.isenabled())
            return (inputs,)

        return SimpleNamespace(run=run, threads=2, output_names=("y",))


def batch(n):
    return np.zeros((n, 1, 4, 4), np.float32)


CONFIG = SpeedConfig(warmup=3, settle=1, rounds=5, seconds_per_round=0.02, min_calls=2)


def measured(config=CONFIG, base=lambda call: 2.0, other=lambda call: 1.0, **options):
    world = World()
    sessions = {"fp32-ort": world.session("fp32-ort", base), "int8": world.session("int8", other)}
    runs = measure_speed(
        sessions, batch, "fp32-ort", config, clock=world.clock, wait=world.wait, **options
    )
    return {(run.variant, run.scenario): run for run in runs}, world


def test_planted_times_come_out():
    runs, _ = measured()
    assert list(runs) == [
        (v, s) for s in ("single-stream", "offline") for v in ("fp32-ort", "int8")
    ]
    single, offline = runs["int8", "single-stream"], runs["int8", "offline"]
    assert single.latency_ms["p50"].estimate == pytest.approx(1.0)
    assert single.images_per_s.estimate == pytest.approx(1000)
    assert single.speedup.ends() == pytest.approx([2, 2])
    assert single.sample_count == 5 * 20
    assert (offline.batch, offline.latency_ms["p99"].estimate) == (8, pytest.approx(8.0))
    assert offline.images_per_s.estimate == pytest.approx(1000)
    assert runs["fp32-ort", "offline"].speedup.ends() == [1.0, 1.0]


def test_a_variant_may_have_a_batch_of_its_own():
    world = World()
    sessions = {name: world.session(name, lambda call: 1.0) for name in ("few", "many")}
    makers = {"few": lambda n: batch(2), "many": lambda n: batch(16)}
    config = SpeedConfig(("offline",), rounds=3, seconds_per_round=0.02)
    runs = measure_speed(sessions, makers, "few", config, clock=world.clock, wait=world.wait)
    assert [run.batch for run in runs] == [2, 16]
    assert [run.images_per_s.estimate for run in runs] == pytest.approx([1000, 1000])
    assert runs[1].speedup.estimate == pytest.approx(1)


def test_slow_models_still_get_their_least_number_of_calls():
    runs, _ = measured(base=lambda call: 50.0)
    assert [slot.calls for slot in runs["fp32-ort", "single-stream"].samples.slots] == [2] * 5


def test_rounds_are_interleaved_in_a_seeded_random_order():
    def turns(seed):
        runs, _ = measured(SpeedConfig(rounds=12, seconds_per_round=0, warmup=0, seed=seed))
        slots = runs["int8", "single-stream"].samples.slots
        assert [slot.round for slot in slots] == list(range(12))
        return [slot.position for slot in slots]

    assert set(turns(0)) == {0, 1}
    assert turns(0) == turns(0)
    assert turns(0) != turns(1)


def test_each_slot_waits_then_settles_then_measures_one_model_only():
    runs, world = measured(
        SpeedConfig(
            scenarios=("offline",), warmup=3, settle=2, rounds=4, min_calls=2, seconds_per_round=0
        )
    )
    assert world.log[:6] == ["fp32-ort"] * 3 + ["int8"] * 3
    slots = " ".join(world.log[6:]).split("wait ")[1:]
    assert len(slots) == 8
    for slot in slots:
        names = slot.split()
        assert len(names) == 4  # 2 to settle, 2 timed
        assert len(set(names)) == 1
    assert runs["int8", "offline"].sample_count == 8


def test_waiting_ends_when_the_process_is_idle_or_the_limit_is_reached(monkeypatch):
    now, used, busy = [0.0], [0.0], [5]

    def sleep(seconds):
        now[0] += seconds
        busy[0] -= 1
        used[0] += seconds if busy[0] > 0 else 0.0

    fake = SimpleNamespace(monotonic=lambda: now[0], process_time=lambda: used[0], sleep=sleep)
    monkeypatch.setattr(speed, "time", fake)
    speed.wait_until_idle()
    assert busy[0] == 0  # it slept on while other threads were using the CPU
    busy[0] = 10**9
    speed.wait_until_idle(limit_s=0.1)
    assert now[0] < 1


def test_a_slow_spell_of_the_machine_does_not_move_the_speedup():
    """Both models are 6 times slower in the last rounds; their ratio stays."""
    config = SpeedConfig(
        scenarios=("single-stream",),
        warmup=0,
        settle=0,
        rounds=10,
        min_calls=1,
        seconds_per_round=0,
    )
    runs, _ = measured(
        config,
        base=lambda call: 2.0 * (6 if call > 5 else 1),
        other=lambda call: 1.0 * (6 if call > 5 else 1),
    )
    run = runs["int8", "single-stream"]
    assert run.speedup.estimate == pytest.approx(2.0)
    assert run.speedup.high == pytest.approx(2.0)
    assert "noisy" in run.note
    assert runs["fp32-ort", "single-stream"].baseline_spread > 0.5


def test_a_steady_machine_has_no_note():
    runs, _ = measured()
    assert all(run.note == "" for run in runs.values())


def test_garbage_is_not_collected_in_a_slot_and_is_afterwards():
    _, world = measured(SpeedConfig(scenarios=("offline",), warmup=0, settle=1, rounds=3))
    assert not any(world.collecting[2:])
    assert gc.isenabled()


def test_progress_counts_rounds():
    steps = []
    measured(progress=lambda *step: steps.append(step))
    assert steps[:2] == [("speed, single-stream", 1, 5), ("speed, single-stream", 2, 5)]
    assert steps[-1] == ("speed, offline", 5, 5)


def test_the_dict_has_the_names_of_the_report_and_is_json():
    runs, _ = measured()
    values = runs["int8", "offline"].to_dict("samples/int8.jsonl")
    assert {
        "scenario", "batch", "threads", "streams", "target_rate", "latency_limit_ms",
        "sample_count", "p50_ms", "p90_ms", "p99_ms", "images_per_s", "speedup", "speedup_ci95",
        "samples",
    } <= set(values)  # fmt: skip
    assert values["target_rate"] is None
    assert values["samples"] == "samples/int8.jsonl"
    json.dumps(values, allow_nan=False)


def test_samples_come_back_and_give_the_same_statistics(tmp_path):
    runs, _ = measured(other=lambda call: 1.0 + 0.1 * (call % 7))
    paths = save_samples(list(runs.values()), tmp_path)
    assert paths["int8"] == tmp_path / "samples" / "int8.jsonl"
    loaded = {found.scenario: found for found in read_samples(paths["int8"])}
    assert list(loaded) == ["single-stream", "offline"]
    for scenario, found in loaded.items():
        kept = runs["int8", scenario].samples
        assert (found.variant, found.batch, found.threads) == ("int8", kept.batch, 2)
        for a, b in zip(found.slots, kept.slots, strict=True):
            assert (a.round, a.position) == (b.round, b.position)
            np.testing.assert_array_equal(a.starts_ns, b.starts_ns)
            np.testing.assert_array_equal(a.durations_ns, b.durations_ns)
    assert len(paths["int8"].read_text().splitlines()) == 2 * 5


def test_damaged_samples_are_artifact_errors(tmp_path):
    path = tmp_path / "x.jsonl"
    with pytest.raises(ArtifactError, match="does not exist"):
        read_samples(path)
    for text in ("{", '{"variant": "a"}', "[1]"):
        path.write_text(text)
        with pytest.raises(ArtifactError, match="not a readable"):
            read_samples(path)


def test_bad_settings_and_names_are_refused():
    for wrong in (
        {"scenarios": ("singlestream",)}, {"scenarios": ()}, {"scenarios": ("offline", "offline")},
        {"batch": 0}, {"rounds": 2}, {"min_calls": 0}, {"seconds_per_round": -1.0},
    ):  # fmt: skip
        with pytest.raises(UserError):
            SpeedConfig(**wrong)
    with pytest.raises(UserError, match='Did you mean "fp32-ort"'):
        measure_speed({"fp32-ort": World().session("x", lambda call: 1.0)}, batch, "fp32-ot")


def test_a_model_that_cannot_run_the_batch_is_named():
    world = World()
    bad = SimpleNamespace(run=lambda inputs: 1 / 0, threads=1)
    sessions = {"fp32-ort": world.session("fp32-ort", lambda call: 1.0), "int8": bad}
    with pytest.raises(
        UserError, match=r"int8 cannot run inputs of shape \(1, 1, 4, 4\): division"
    ):
        measure_speed(sessions, batch, "fp32-ort", CONFIG, clock=world.clock, wait=world.wait)


def test_what_went_wrong_keeps_its_exit_code():
    def broken(inputs):
        raise MissingDependencyError("the GPU is gone.")

    world = World()
    sessions = {"fp32-ort": SimpleNamespace(run=broken, threads=1)}
    with pytest.raises(MissingDependencyError, match="the GPU is gone"):
        measure_speed(sessions, batch, "fp32-ort", CONFIG, clock=world.clock, wait=world.wait)


def test_real_sessions_are_measured(tiny):
    sessions = {"a": open_session(tiny), "b": open_session(tiny)}
    config = SpeedConfig(rounds=3, seconds_per_round=0.005, warmup=1)
    runs = measure_speed(sessions, lambda n: np.zeros((n, 1, 8, 8), np.float32), "a", config)
    assert len(runs) == 4
    for run in runs:
        assert run.samples.threads == sessions["a"].threads
        assert run.latency_ms["p50"].estimate > 0
        assert run.speedup.low <= run.speedup.estimate <= run.speedup.high
        starts = np.concatenate([slot.starts_ns for slot in run.samples.slots])
        assert (np.diff(starts) > 0).all()
        assert str(run).startswith(f"{run.variant} {run.scenario}")
