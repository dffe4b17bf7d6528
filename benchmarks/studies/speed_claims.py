"""What `peers_speed` holds against its goals, and the columns of its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.speed_run import SpeedRun
from benchmarks.statistics import Interval
from benchmarks.studies.base import Results
from benchmarks.studies.speed_rows import BASELINE
from benchmarks.studies.speed_run import Timed

NOT_SLOWER = 0.98
"""The ratio's interval lies above it: the definition of "not slower"."""
GOALS = {"single-stream": 7.5, "offline": 10.5}
"""INT8 over onnxruntime FP32; the second is the far goal, beyond what OpenVINO's kernels gave."""


def ratio_of(run: SpeedRun, other: SpeedRun) -> Interval | None:
    """Return the ratio of two variants' images a second in the same rounds, None without rates."""
    pair = SpeedRun(run.samples, other.samples, run.seed)
    return pair.speedup if pair.has_speedup else None


def best_of(timed: Sequence[Timed], chosen: Callable[[Timed], bool]) -> Timed | None:
    """Return the fastest of the chosen rows that ran, None where none did."""
    ran = [each for each in timed if each.run is not None and each.run.has_rate and chosen(each)]
    return max(ran, key=_rate, default=None)


def _rate(each: Timed) -> float:
    return each.run.images_per_s.estimate if each.run is not None else 0.0


def claim_speed(results: Results, model: str, scenario: str, timed: Sequence[Timed]) -> None:
    """State how our best row stands beside the best of the others, and our best INT8 row beside
    the baseline. The best of either side is chosen after the fact, in the same run."""
    ours = best_of(timed, lambda each: each.row.ours)
    peer = best_of(timed, lambda each: not each.row.ours)
    claim_ratio(
        results, f"{model}, {scenario}: ours over the best of the others", ours, peer, NOT_SLOWER,
        low=True,
    )  # fmt: skip
    if scenario in GOALS:
        int8 = best_of(timed, lambda each: each.row.ours and each.row.kind == "int8")
        base = best_of(timed, lambda each: each.row.name == BASELINE)
        claim_ratio(
            results, f"{model}, {scenario}: our INT8 over {BASELINE}", int8, base, GOALS[scenario]
        )


def claim_ratio(
    results: Results, name: str, ours: Timed | None, other: Timed | None, goal: float,
    low: bool = False,
) -> None:  # fmt: skip
    """Claim the ratio of two rows; a side that did not run makes it not met.

    low: judge the low end of the interval in place of the median.
    """
    found = None
    if ours is not None and other is not None and ours.run is not None and other.run is not None:
        found = ratio_of(ours.run, other.run)
        name += f" ({ours.row.name} over {other.row.name})"
    if found is None:
        results.claim(name, None, ">=", goal)
        return
    shown = f"{found.estimate:.2f}x [{found.low:.2f}, {found.high:.2f}]"
    value = found.low if low else found.estimate
    results.claim(f"{name}, {shown}{', its low end' if low else ''}", value, ">=", goal)


def values_of(each: Timed) -> dict[str, Any]:
    """Return the columns of a row; of one that did not run, its names and the reason."""
    row = each.row
    values: dict[str, Any] = {
        "tool": row.tool, "way": row.way, "kind": row.kind, "input": "uint8" if row.pixels else "float",
    }  # fmt: skip
    if each.search is not None:
        values["tried"] = {str(s): round(rate, 2) for s, rate in each.search.tried.items()}
    if each.run is None:
        return values | {"status": "did not run", "reason": each.reason}
    if each.search is not None:
        best = each.search.best
        values |= {"threads": best.threads, "streams": best.streams, "chunk": best.chunk}
    return values | {"runs_in": each.runs_in, "sqnr_db": each.sqnr_db} | run_values(each.run)


def run_values(run: SpeedRun) -> dict[str, Any]:
    """Return a run's figures with their intervals, and each round's images a second."""
    kept = (
        "p50_ms", "p50_ms_ci95", "p99_ms", "p99_ms_ci95", "images_per_s", "images_per_s_ci95",
        "speedup", "speedup_ci95", "rounds", "sample_count", "baseline_spread", "note",
    )  # fmt: skip
    values = run.to_dict()
    return {"query": run.batch} | {name: values[name] for name in kept} | {
        "rounds_images_per_s": [
            round(slot.rate or slot.calls * run.batch / slot.wall_s, 3)
            for slot in run.samples.slots
        ]
    }  # fmt: skip
