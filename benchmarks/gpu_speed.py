"""Speed of engines on the GPU's own clock: CUDA events, interleaved rounds, raw samples kept.

`benchmarks.speed` times whole calls on the host's clock, for every runtime alike. This adds what
only an engine can tell: the computation alone, and with its copies. Both are taken in the same
call. Each round times every engine once, in an order drawn anew, and the GPU's clocks,
temperature and power are noted before the first round and after each one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.environment import describe_environment
from benchmarks.speed import MakeBatch, Progress, inputs_of
from benchmarks.statistics import (
    Interval,
    median_interval,
    paired_ratio_interval,
    percentile_intervals,
)
from deploy_tools.artifacts import write_text
from deploy_tools.errors import ArtifactError, UserError, nearest

CLOCKS = ("compute", "with_copies")
"""What is timed: the computation alone, and with the copies to and from the device."""


class Timed(Protocol):
    """The raw timings of one batch (`deploy_tools.runtimes.tensorrt.GpuTimes`)."""

    @property
    def compute_ms(self) -> NDArray[np.float64]: ...
    @property
    def with_copies_ms(self) -> NDArray[np.float64]: ...


class EngineSession(Protocol):
    """A session that can time itself with events.

    cuda_graph: whether its calls are launched as CUDA graphs. require_batch: UserError for a
    size that it cannot be timed with.
    """

    @property
    def cuda_graph(self) -> bool: ...
    def require_batch(self, batch: int) -> None: ...
    def time_batches(
        self, inputs: NDArray[Any], repeats: int, warmup: int, read_state: bool
    ) -> Timed: ...


@dataclass(frozen=True)
class GpuSpeedConfig:
    """How to measure.

    batches: sizes, one after the other. warmup: untimed calls of each engine before the first
    round; settle: untimed calls at the start of each turn; repeats: timed calls of a turn.
    """

    batches: tuple[int, ...] = (1, 8)
    warmup: int = 50
    settle: int = 5
    rounds: int = 12
    repeats: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"warmup": 0, "settle": 0, "rounds": 3, "repeats": 1}
        for key, value in least.items():
            if getattr(self, key) < value:
                raise UserError(f"{key} must be at least {value}, got {getattr(self, key)}.")
        if not self.batches or min(self.batches) < 1 or len(set(self.batches)) < len(self.batches):
            raise UserError(f"batches must be different sizes of 1 or more, got {self.batches}.")


@dataclass(frozen=True, eq=False)
class Turn:
    """What one engine's turn in one round gave: milliseconds of each call, float64."""

    round: int
    position: int
    compute_ms: NDArray[np.float64]
    with_copies_ms: NDArray[np.float64]

    def ms(self, clock: str) -> NDArray[np.float64]:
        """The timings by a name in `CLOCKS`."""
        return self.compute_ms if clock == "compute" else self.with_copies_ms


@dataclass(frozen=True, eq=False)
class GpuRun:
    """One engine at one batch size: raw timings, and statistics derived from them.

    states: what the GPU said before the first round and after each; {} where it says nothing.
    baseline: the first engine's turns in the same rounds. cuda_graph: whether each call was one
    launch of a CUDA graph.
    """

    variant: str
    batch: int
    warmup: int
    turns: tuple[Turn, ...]
    baseline: tuple[Turn, ...]
    states: tuple[dict[str, Any], ...]
    cuda_graph: bool
    seed: int = 0

    @property
    def note(self) -> str:
        """What the compute time holds beside the computation, "" where nothing."""
        if self.cuda_graph:
            return ""
        return (
            "without --cuda-graph: the compute time holds the gaps in which the GPU waits for the "
            "host to launch the next kernel"
        )

    def percentiles_ms(self, clock: str) -> dict[str, Interval]:
        """Percentiles p50, p90 and p99 of a call, in milliseconds, over all rounds."""
        found = percentile_intervals(
            [turn.ms(clock) for turn in self.turns], (50, 90, 99), self.seed
        )
        return dict(zip(("p50", "p90", "p99"), found, strict=True))

    @cached_property
    def images_per_s(self) -> dict[str, Interval]:
        """By clock: the median over rounds of images per second of GPU time."""
        return {c: median_interval(_rates(self.turns, self.batch, c), self.seed) for c in CLOCKS}

    @cached_property
    def speedup(self) -> dict[str, Interval]:
        """By clock: the median over rounds of images per second over the baseline's."""
        if self.turns is self.baseline:
            return dict.fromkeys(CLOCKS, Interval(1.0, 1.0, 1.0))
        return {
            clock: paired_ratio_interval(
                _rates(self.turns, self.batch, clock),
                _rates(self.baseline, self.batch, clock),
                self.seed,
            )
            for clock in CLOCKS
        }

    def to_dict(self, samples: str | None = None) -> dict[str, Any]:
        """Return the values, each with its interval; samples: path of the raw timings."""
        values: dict[str, Any] = {
            "batch": self.batch,
            "clock": "cuda-events",
            "cuda_graph": self.cuda_graph,
            "note": self.note,
            "warmup": self.warmup,
            "rounds": len(self.turns),
            "sample_count": sum(len(turn.compute_ms) for turn in self.turns),
            "before": self.states[0],
            "after": self.states[-1],
            "samples": samples,
        }
        for clock in CLOCKS:
            figures = {
                **{f"{name}_ms": found for name, found in self.percentiles_ms(clock).items()},
                "images_per_s": self.images_per_s[clock],
                "speedup": self.speedup[clock],
            }
            for name, interval in figures.items():
                values[f"{clock}_{name}"] = interval.estimate
                values[f"{clock}_{name}_ci95"] = interval.ends()
        return values

    def __str__(self) -> str:
        compute, copies = (self.percentiles_ms(clock)["p50"].estimate for clock in CLOCKS)
        ratio = self.speedup["compute"]
        return (
            f"{self.variant} batch {self.batch}: {compute:.4f} ms compute, {copies:.4f} ms with "
            f"copies; of the computation {self.images_per_s['compute'].estimate:.0f} images/s, "
            f"{ratio.estimate:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"
        )


def measure_gpu_speed(
    sessions: Mapping[str, EngineSession],
    make_batch: MakeBatch | Mapping[str, MakeBatch],
    baseline: str,
    config: GpuSpeedConfig | None = None,
    progress: Progress | None = None,
    state: Callable[[], dict[str, Any]] | None = None,
) -> list[GpuRun]:
    """Time every engine at every batch size, interleaved; one GpuRun for each pair.

    sessions: by variant id; make_batch: as `measure_speed` takes it. baseline:
    the id that speedups are relative to. state: reads the GPU's clocks and temperature
    (default: `deploy_tools.runtimes.gpu.gpu_state`).
    Raises UserError for an unknown baseline and, before anything is timed, for a batch size that
    a session does not take as it is; and whatever a session raises.
    """
    if baseline not in sessions:
        raise UserError(f'the baseline "{baseline}" is not measured.', nearest(baseline, sessions))
    config, state = config or GpuSpeedConfig(), state or _gpu_state
    for batch in config.batches:
        for session in sessions.values():
            session.require_batch(batch)
    generator = np.random.Generator(np.random.PCG64(config.seed))
    runs = []
    for batch in config.batches:
        inputs = inputs_of(make_batch, sessions, batch)
        for variant, session in sessions.items():
            session.time_batches(inputs[variant], 1, config.warmup, False)
        turns: dict[str, list[Turn]] = {variant: [] for variant in sessions}
        states = [state()]
        for number in range(config.rounds):
            for position, place in enumerate(generator.permutation(len(sessions))):
                variant = list(sessions)[place]
                times = sessions[variant].time_batches(
                    inputs[variant], config.repeats, config.settle, False
                )
                turns[variant].append(
                    Turn(number, position, times.compute_ms, times.with_copies_ms)
                )
            states.append(state())
            if progress is not None:
                progress(f"GPU speed, batch {batch}", number + 1, config.rounds)
        graphs = {variant: session.cuda_graph for variant, session in sessions.items()}
        runs += _runs(turns, graphs, batch, baseline, tuple(states), config)
    return runs


def save_gpu_samples(
    runs: Sequence[GpuRun], folder: Path, config: GpuSpeedConfig
) -> dict[str, Path]:
    """Write the raw timings to folder/samples/<variant>.gpu.jsonl; returns the path by variant.

    The first line has the environment and the settings, then one turn a line, each with the
    GPU's state before and after its round.
    """
    names = dict.fromkeys(run.variant for run in runs)
    paths = {name: folder / "samples" / f"{name}.gpu.jsonl" for name in names}
    head = {"clock": "cuda-events", "environment": describe_environment(), "config": asdict(config)}
    for variant, path in paths.items():
        lines = [head | {"variant": variant}]
        lines += [_line(run, turn) for run in runs if run.variant == variant for turn in run.turns]
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    return paths


def read_gpu_samples(path: Path) -> tuple[dict[str, Any], dict[int, list[Turn]]]:
    """Read what `save_gpu_samples` wrote: the first line, and the turns by batch size.

    Raises ArtifactError where the file is missing or damaged.
    """
    try:
        first, *rest = (json.loads(text) for text in path.read_text("utf-8").splitlines())
        turns: dict[int, list[Turn]] = {}
        for line in rest:
            times = (np.array(line[f"{clock}_ms"], np.float64) for clock in CLOCKS)
            turns.setdefault(line["batch"], []).append(
                Turn(line["round"], line["position"], *times)
            )
        return dict(first), turns
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is not a readable GPU samples file: {error}") from error


def _line(run: GpuRun, turn: Turn) -> dict[str, Any]:
    return {
        "batch": run.batch,
        "cuda_graph": run.cuda_graph,
        "warmup": run.warmup,
        "round": turn.round,
        "position": turn.position,
        "compute_ms": turn.compute_ms.tolist(),
        "with_copies_ms": turn.with_copies_ms.tolist(),
        "before": run.states[turn.round],
        "after": run.states[turn.round + 1],
    }


def _runs(
    turns: Mapping[str, Sequence[Turn]],
    graphs: Mapping[str, bool],
    batch: int,
    baseline: str,
    states: tuple[dict[str, Any], ...],
    config: GpuSpeedConfig,
) -> list[GpuRun]:
    kept = {variant: tuple(found) for variant, found in turns.items()}
    return [
        GpuRun(
            variant,
            batch,
            config.warmup,
            found,
            kept[baseline],
            states,
            graphs[variant],
            config.seed,
        )
        for variant, found in kept.items()
    ]


def _rates(turns: Sequence[Turn], batch: int, clock: str) -> list[float]:
    """Images per second of GPU time, round by round."""
    return [batch * 1e3 / float(turn.ms(clock).mean()) for turn in turns]


def _gpu_state() -> dict[str, Any]:
    from deploy_tools.runtimes.gpu import gpu_state

    return gpu_state()
