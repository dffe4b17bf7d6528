"""Speed of several models against a baseline, interleaved on the same machine.

Every round gives each model one short slot, in an order drawn anew, so that what slows the
machine down for a while (another program, a hot CPU) meets all of them alike. Speedups are
ratios within a round.

All models are loaded in one process, but only one runs at a time. Thread pools of the others
may keep spinning after their last call (onnxruntime's for tens of milliseconds) and would take
cores from the next one, so each slot first waits until the process is idle.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.samples import SampleSet, Slot, write_samples
from benchmarks.statistics import (
    Interval,
    median_interval,
    paired_ratio_interval,
    percentile_intervals,
)
from deploy_tools.errors import DeployToolsError, UserError, nearest
from deploy_tools.runtimes import Session

Progress = Callable[[str, int, int], None]
MakeBatch = Callable[[int], NDArray[Any]]
"""Gives so many images as a session takes them: float32 (N, C, H, W) or uint8 (N, H, W, C)."""

SCENARIOS = ("single-stream", "offline")
NOISY_SPREAD = 0.25
"""Above this relative spread of the baseline's rounds, a run carries a note."""


@dataclass(frozen=True)
class SpeedConfig:
    """How to measure speed.

    scenarios: "single-stream" is one image after the other, "offline" one batch after the other.
    batch: of offline. warmup: untimed calls of each model before the first round.
    settle: untimed calls at the start of each slot.
    seconds_per_round, min_calls: a slot ends when both are reached.
    seed: of the order within rounds and of the bootstrap.
    """

    scenarios: tuple[str, ...] = SCENARIOS
    batch: int = 8
    warmup: int = 5
    settle: int = 2
    rounds: int = 15
    seconds_per_round: float = 0.15
    min_calls: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for scenario in self.scenarios:
            if scenario not in SCENARIOS:
                raise UserError(
                    f'scenario "{scenario}" is not known.', nearest(scenario, SCENARIOS)
                )
        if not self.scenarios or len(set(self.scenarios)) != len(self.scenarios):
            raise UserError("scenarios must name each scenario once, and at least one.")
        for key, least in (
            ("batch", 1),
            ("warmup", 0),
            ("settle", 0),
            ("rounds", 3),
            ("min_calls", 1),
        ):
            if getattr(self, key) < least:
                raise UserError(f"{key} must be at least {least}, got {getattr(self, key)}.")
        if not 0 <= self.seconds_per_round <= 3600:
            raise UserError(
                f"seconds_per_round must lie in [0, 3600], got {self.seconds_per_round}."
            )

    def batch_of(self, scenario: str) -> int:
        """Return how many images one call of the scenario takes."""
        return 1 if scenario == "single-stream" else self.batch


@dataclass(frozen=True, eq=False)
class SpeedRun:
    """One variant in one scenario: the raw timings and the statistics derived from them."""

    samples: SampleSet
    baseline: SampleSet
    """The baseline's timings in the same rounds."""
    seed: int = 0

    @property
    def variant(self) -> str:
        return self.samples.variant

    @property
    def scenario(self) -> str:
        return self.samples.scenario

    @property
    def batch(self) -> int:
        return self.samples.batch

    @property
    def sample_count(self) -> int:
        """How many calls were timed."""
        return sum(slot.calls for slot in self.samples.slots)

    @cached_property
    def latency_ms(self) -> dict[str, Interval]:
        """Percentiles p50, p90 and p99 of a call, in milliseconds, over all rounds."""
        rounds = [slot.latencies_ms for slot in self.samples.slots]
        return dict(
            zip(
                ("p50", "p90", "p99"),
                percentile_intervals(rounds, (50, 90, 99), self.seed),
                strict=True,
            )
        )

    @cached_property
    def images_per_s(self) -> Interval:
        """The median over rounds of images per second of wall time."""
        return median_interval(_rates(self.samples), self.seed)

    @cached_property
    def speedup(self) -> Interval:
        """The median over rounds of the ratio of images per second, variant over baseline."""
        if self.samples is self.baseline:
            return Interval(1.0, 1.0, 1.0)
        return paired_ratio_interval(_rates(self.samples), _rates(self.baseline), self.seed)

    @cached_property
    def baseline_spread(self) -> float:
        """How unsteady the machine was: (p90 - p10) / p50 of the baseline's rounds."""
        low, middle, high = np.percentile(_rates(self.baseline), (10, 50, 90))
        return float((high - low) / middle)

    @property
    def note(self) -> str:
        """A warning where the machine was too unsteady for small differences, else ""."""
        if self.baseline_spread <= NOISY_SPREAD:
            return ""
        return (
            f"noisy: the baseline's images/s varied by {100 * self.baseline_spread:.0f} % "
            "(p10 to p90) from round to round"
        )

    def to_dict(self, samples: str | None = None) -> dict[str, Any]:
        """Return the values under report.json's names; samples: path of the raw timings."""
        values: dict[str, Any] = {
            "scenario": self.scenario,
            "batch": self.batch,
            "threads": self.samples.threads,
            "streams": self.samples.streams,
            "target_rate": None,
            "latency_limit_ms": None,
            "rounds": len(self.samples.slots),
            "sample_count": self.sample_count,
        }
        for name, interval in self.latency_ms.items():
            values[f"{name}_ms"] = interval.estimate
            values[f"{name}_ms_ci95"] = interval.ends()
        return values | {
            "images_per_s": self.images_per_s.estimate,
            "images_per_s_ci95": self.images_per_s.ends(),
            "speedup": self.speedup.estimate,
            "speedup_ci95": self.speedup.ends(),
            "baseline_spread": self.baseline_spread,
            "note": self.note,
            "samples": samples,
        }

    def __str__(self) -> str:
        p50, p99, ratio = self.latency_ms["p50"], self.latency_ms["p99"], self.speedup
        return (
            f"{self.variant} {self.scenario} batch {self.batch}: p50 {p50.estimate:.2f} ms, "
            f"p99 {p99.estimate:.2f} ms, {self.images_per_s.estimate:.0f} images/s, "
            f"{ratio.estimate:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"
        )


def measure_speed(
    sessions: Mapping[str, Session],
    make_batch: MakeBatch | Mapping[str, MakeBatch],
    baseline: str,
    config: SpeedConfig | None = None,
    progress: Progress | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
    wait: Callable[[], None] | None = None,
) -> list[SpeedRun]:
    """Time every session in every scenario, interleaved; one SpeedRun for each pair.

    sessions: by variant id; make_batch(n) gives n images as the sessions take them, the same for
    all; a mapping has one for each variant, where some take pixels. baseline: the id that speedups are relative to. clock: nanoseconds; wait: runs
    before each slot (default: until this process is idle).
    Raises UserError for an unknown baseline and for a session that cannot run such a batch.
    """
    if baseline not in sessions:
        raise UserError(f'the baseline "{baseline}" is not measured.', nearest(baseline, sessions))
    config = config or SpeedConfig()
    generator = np.random.Generator(np.random.PCG64(config.seed))
    runs = []
    for scenario in config.scenarios:
        inputs = inputs_of(make_batch, sessions, config.batch_of(scenario))
        for variant, session in sessions.items():
            _warm_up(variant, session, inputs[variant], config.warmup)
        slots: dict[str, list[Slot]] = {variant: [] for variant in sessions}
        begin = clock()
        for number in range(config.rounds):
            for position, place in enumerate(generator.permutation(len(sessions))):
                variant = list(sessions)[place]
                (wait or wait_until_idle)()
                starts, durations = _timed_calls(sessions[variant], inputs[variant], config, clock)
                slots[variant].append(Slot(number, position, starts - begin, durations))
            if progress is not None:
                progress(f"speed, {scenario}", number + 1, config.rounds)
        runs += _runs(sessions, slots, scenario, len(inputs[baseline]), baseline, config.seed)
    return runs


def inputs_of(
    make_batch: MakeBatch | Mapping[str, MakeBatch], variants: Iterable[str], count: int
) -> dict[str, NDArray[Any]]:
    """Return the inputs of each variant; those with the same maker share one array."""
    if not isinstance(make_batch, Mapping):
        one = make_batch(count)
        return dict.fromkeys(variants, one)
    made: dict[MakeBatch, NDArray[Any]] = {}
    for variant in variants:
        make = make_batch[variant]
        if make not in made:
            made[make] = make(count)
    return {variant: made[make_batch[variant]] for variant in variants}


def save_samples(runs: Sequence[SpeedRun], folder: Path) -> dict[str, Path]:
    """Write the raw timings to folder/samples/<variant>.jsonl; returns the path by variant."""
    paths = {run.variant: folder / "samples" / f"{run.variant}.jsonl" for run in runs}
    for variant, path in paths.items():
        write_samples(path, [run.samples for run in runs if run.variant == variant])
    return paths


def wait_until_idle(limit_s: float = 0.25) -> None:
    """Return once this process uses next to no CPU time, or after `limit_s` seconds."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        before = time.process_time()
        time.sleep(0.003)
        if time.process_time() - before < 0.0006:
            return


def _warm_up(variant: str, session: Session, inputs: NDArray[Any], calls: int) -> None:
    try:
        for _ in range(max(calls, 1)):
            session.run(inputs)
    except Exception as error:  # every runtime has its own classes
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        kind = type(error) if isinstance(error, DeployToolsError) else UserError  # its exit code
        raise kind(f"{variant} cannot run inputs of shape {inputs.shape}: {reason}") from error


def _timed_calls(
    session: Session, inputs: NDArray[Any], config: SpeedConfig, clock: Callable[[], int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the start and the duration, in nanoseconds, of each call of one slot."""
    starts: list[int] = []
    ends: list[int] = []
    collecting = gc.isenabled()
    gc.disable()  # a collection in the middle of a call would be billed to the model
    try:
        for _ in range(config.settle):
            session.run(inputs)
        stop = clock() + round(config.seconds_per_round * 1e9)
        while len(ends) < config.min_calls or ends[-1] < stop:
            starts.append(clock())
            session.run(inputs)
            ends.append(clock())
    finally:
        if collecting:
            gc.enable()
    started = np.array(starts, np.int64)
    return started, np.array(ends, np.int64) - started


def _runs(
    sessions: Mapping[str, Session],
    slots: Mapping[str, Sequence[Slot]],
    scenario: str,
    batch: int,
    baseline: str,
    seed: int,
) -> list[SpeedRun]:
    sets = {
        variant: SampleSet(
            variant=variant,
            scenario=scenario,
            batch=batch,
            threads=session.threads,
            streams=getattr(session, "streams", 1),
            slots=tuple(slots[variant]),
        )
        for variant, session in sessions.items()
    }
    return [SpeedRun(samples, sets[baseline], seed) for samples in sets.values()]


def _rates(samples: SampleSet) -> list[float]:
    """Images per second of wall time, round by round."""
    return [slot.calls * samples.batch / slot.wall_s for slot in samples.slots]
