"""Speed of several models against a baseline, interleaved on the same machine.

Every round gives each model one short slot, in an order drawn anew, so that what slows the
machine down for a while (another program, a hot CPU) meets all of them alike. Speedups are
ratios within a round.

"single-stream", "multi-stream" and "offline" send the next query when the last one is answered;
"server" is `benchmarks.server`. Definitions: MLPerf Inference Rules, section "Scenarios".

All models are loaded in one process, but only one runs at a time. Thread pools of the others
may keep spinning after their last call (onnxruntime's for tens of milliseconds) and would take
cores from the next one, so each slot first waits until the process is idle.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.energy import EnergyMeter, find_energy_meter
from benchmarks.samples import SampleSet, Slot, write_samples
from benchmarks.server import ServerBench, ServerConfig, Tools, begin_slot, for_every_stream
from benchmarks.speed_run import SpeedRun as SpeedRun
from deploy_tools.errors import DeployToolsError, UserError, nearest
from deploy_tools.runtimes import Session

Progress = Callable[[str, int, int], None]
MakeBatch = Callable[[int], NDArray[Any]]
"""Gives so many images as a session takes them: float32 (N, C, H, W) or uint8 (N, H, W, C)."""

SCENARIOS = ("single-stream", "multi-stream", "server", "offline")
DEFAULT_SCENARIOS = ("single-stream", "offline")


@dataclass(frozen=True)
class SpeedConfig:
    """How to measure speed.

    scenarios: "single-stream" is one image after the other, "multi-stream" one query of
    `samples_per_query` images after the other, "offline" one batch after the other, "server"
    images that arrive at random, as `server` says.
    batch: of offline. warmup: untimed calls of each model before the first round.
    settle: untimed calls at the start of each slot.
    rounds, seconds_per_round, min_calls: a slot ends when both of the latter are reached.
    min_images: the least of offline, over all rounds.
    seed: of the order within rounds, of arrivals and of the bootstrap.
    """

    scenarios: tuple[str, ...] = DEFAULT_SCENARIOS
    batch: int = 8
    warmup: int = 5
    settle: int = 2
    rounds: int = 15
    seconds_per_round: float = 0.15
    min_calls: int = 2
    seed: int = 0
    samples_per_query: int = 8
    min_images: int = 0
    server: ServerConfig = field(default_factory=ServerConfig)

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
            ("samples_per_query", 1),
            ("min_images", 0),
        ):
            if getattr(self, key) < least:
                raise UserError(f"{key} must be at least {least}, got {getattr(self, key)}.")
        if not 0 <= self.seconds_per_round <= 3600:
            raise UserError(
                f"seconds_per_round must lie in [0, 3600], got {self.seconds_per_round}."
            )

    def batch_of(self, scenario: str) -> int:
        """Return how many images one call of the scenario takes."""
        return {"offline": self.batch, "multi-stream": self.samples_per_query}.get(scenario, 1)

    def least_calls(self, scenario: str) -> int:
        """Return how many calls one slot of the scenario has at least."""
        images = self.min_images if scenario == "offline" else 0
        return max(self.min_calls, -(-images // (self.batch * self.rounds)))


def measure_speed(
    sessions: Mapping[str, Session],
    make_batch: MakeBatch | Mapping[str, MakeBatch],
    baseline: str,
    config: SpeedConfig | None = None,
    progress: Progress | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
    wait: Callable[[], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    meter: EnergyMeter | None = None,
) -> list[SpeedRun]:
    """Time every session in every scenario, interleaved; one SpeedRun for each pair.

    sessions: by variant id; make_batch(n) gives what a call of n images takes, the same for all:
    preprocessed images, or what `end_to_end.PathToLabel` takes; a mapping has one for each
    variant, where some take pixels; one that gives another number of images than was asked for
    makes that the variant's batch. baseline: the id that speedups are relative to. clock:
    nanoseconds; wait: runs before each slot (default: until this process is idle); sleep: in
    seconds; meter: of energy (default: this machine's).
    Raises UserError for an unknown baseline and for a session that cannot run such a batch.
    """
    if baseline not in sessions:
        raise UserError(f'the baseline "{baseline}" is not measured.', nearest(baseline, sessions))
    config = config or SpeedConfig()
    tools = Tools(clock, sleep, wait or wait_until_idle, meter or find_energy_meter())
    generator = np.random.Generator(np.random.PCG64(config.seed))
    runs = []
    for scenario in config.scenarios:
        inputs = inputs_of(make_batch, sessions, config.batch_of(scenario))
        for variant, session in sessions.items():
            given = inputs[variant]
            one = for_every_stream(session, given) if scenario == "server" else given
            _warm_up(variant, session, one, config.warmup)
        if scenario == "server":
            bench = ServerBench(
                sessions, inputs, config.server, config.settle, config.seed, clock(), tools
            )
            slots = bench.slots(progress)
        else:
            slots = _closed_loop(sessions, inputs, scenario, config, generator, tools, progress)
        counts = {variant: len(given) for variant, given in inputs.items()}
        runs += _runs(sessions, slots, scenario, counts, baseline, config)
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


def _closed_loop(
    sessions: Mapping[str, Session],
    inputs: Mapping[str, NDArray[Any]],
    scenario: str,
    config: SpeedConfig,
    generator: np.random.Generator,
    tools: Tools,
    progress: Progress | None,
) -> dict[str, list[Slot]]:
    """One slot a round for each session, in which a call follows the last one at once."""
    slots: dict[str, list[Slot]] = {variant: [] for variant in sessions}
    begin = tools.clock()
    for number in range(config.rounds):
        for position, place in enumerate(generator.permutation(len(sessions))):
            variant = list(sessions)[place]
            tools.wait()
            begin_slot(sessions[variant], number)
            starts, durations, energy = _timed_calls(
                sessions[variant], inputs[variant], config, config.least_calls(scenario), tools
            )
            slots[variant].append(
                Slot(number, position, starts - begin, durations, energy_j=energy)
            )
        if progress is not None:
            progress(f"speed, {scenario}", number + 1, config.rounds)
    return slots


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
    session: Session, inputs: NDArray[Any], config: SpeedConfig, least: int, tools: Tools
) -> tuple[NDArray[np.int64], NDArray[np.int64], float | None]:
    """Return each call's start and duration in one slot, in nanoseconds, and the slot's joules."""
    starts: list[int] = []
    ends: list[int] = []
    clock, collecting = tools.clock, gc.isenabled()
    gc.disable()  # a collection in the middle of a call would be billed to the model
    try:
        for _ in range(config.settle):
            session.run(inputs)
        before = tools.meter.read()
        stop = clock() + round(config.seconds_per_round * 1e9)
        while len(ends) < least or ends[-1] < stop:
            starts.append(clock())
            session.run(inputs)
            ends.append(clock())
        energy = tools.meter.joules(before, tools.meter.read())
    finally:
        if collecting:
            gc.enable()
    started = np.array(starts, np.int64)
    return started, np.array(ends, np.int64) - started, energy


def _runs(
    sessions: Mapping[str, Session],
    slots: Mapping[str, Sequence[Slot]],
    scenario: str,
    counts: Mapping[str, int],
    baseline: str,
    config: SpeedConfig,
) -> list[SpeedRun]:
    """Return the runs; counts: images a call of each variant."""
    server = config.server if scenario == "server" else None
    sets = {
        variant: SampleSet(
            variant=variant,
            scenario=scenario,
            batch=counts[variant],
            threads=session.threads,
            streams=getattr(session, "streams", 1),
            slots=tuple(slots[variant]),
            end_to_end=getattr(session, "end_to_end", False),
            latency_limit_ms=server.latency_limit_ms if server else None,
            target_rate=server.target_rate if server else None,
        )
        for variant, session in sessions.items()
    }
    return [SpeedRun(samples, sets[baseline], config.seed) for samples in sets.values()]
