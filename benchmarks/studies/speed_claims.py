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
AS_ACCURATE_DB = -0.5
"""How much lower the logit SQNR of our fastest row may be than the plain INT8 file's: less than
another draw of calibration images changes."""
PLAIN_INT8 = "onnxruntime INT8, U8S8 per channel"
"""What the plain INT8 file of this model is: min-max ranges, nothing corrected."""
GOALS = {"single-stream": 7.5, "offline": 10.5}
"""INT8 over onnxruntime FP32; the second is the far goal, beyond what OpenVINO's kernels gave."""


def ratio_of(run: SpeedRun, other: SpeedRun) -> Interval | None:
    """Return the ratio of two variants' images a second in the same rounds, None without rates."""
    pair = SpeedRun(run.samples, other.samples, run.seed)
    return pair.speedup if pair.has_speedup else None


def best_of(timed: Sequence[Timed], chosen: Callable[[Timed], bool]) -> Timed | None:
    """Return the fastest of the chosen rows that ran, by the run of all rows; None where none did."""
    ran = [(each.run.images_per_s.estimate, each) for each in timed
           if each.run is not None and each.run.has_rate and chosen(each)]  # fmt: skip
    return max(ran, key=lambda pair: pair[0], default=(0.0, None))[1]


def finalists(timed: Sequence[Timed]) -> list[Timed]:
    """Return the rows that the claims compare: the baseline, and the best of each side.

    They are timed once more: were they judged by the run in which they were the fastest, the
    luckiest of many rows would be judged by the very rounds in which it was lucky.
    """
    found = (_baseline(timed), _peer(timed), _ours(timed), _our_int8(timed))
    return list({each.row.name: each for each in found if each is not None}.values())


def _baseline(timed: Sequence[Timed]) -> Timed | None:
    return next((each for each in timed if each.row.name == BASELINE), None)


def _peer(timed: Sequence[Timed]) -> Timed | None:
    return best_of(timed, lambda each: not each.row.ours)


def _ours(timed: Sequence[Timed]) -> Timed | None:
    return best_of(timed, lambda each: each.row.ours)


def _our_int8(timed: Sequence[Timed]) -> Timed | None:
    return best_of(timed, lambda each: each.row.ours and each.row.kind == "int8")


def claim_speed(results: Results, model: str, scenario: str, timed: Sequence[Timed]) -> None:
    """State how our best row stands beside the best of the others, in speed and in accuracy, and
    our best INT8 row beside the baseline, by the run of the finalists."""
    ours, peer = _ours(timed), _peer(timed)
    where = f"{model}, {scenario}"
    if scenario == "server" and ours is not None and ours.duel is not None and peer is None:
        name = f"{where}: {ours.row.name} keeps the latency limit at a rate, none of the others"
        results.claim(f"{name}, images/s", ours.duel.images_per_s.low, ">", 0.0)
    else:
        name = f"{where}: ours over the best of the others"
        claim_ratio(results, name, ours, peer, NOT_SLOWER, low=True)
    claim_accuracy(results, where, ours, timed)
    if scenario in GOALS:
        name = f"{model}, {scenario}: our INT8 over {BASELINE}"
        claim_ratio(results, name, _our_int8(timed), _baseline(timed), GOALS[scenario])


def claim_accuracy(
    results: Results, where: str, ours: Timed | None, timed: Sequence[Timed]
) -> None:
    """Claim that our fastest row is as accurate as the plain INT8 file; nothing without both."""
    plain = next((each for each in timed if each.row.name == PLAIN_INT8), None)
    if ours is None or ours.sqnr_db is None or plain is None or plain.sqnr_db is None:
        return
    name = (
        f"{where}: logit SQNR of {ours.row.name}, {ours.sqnr_db:.1f} dB, over that of "
        f"{PLAIN_INT8}, {plain.sqnr_db:.1f} dB"
    )
    results.claim(name, ours.sqnr_db - plain.sqnr_db, ">=", AS_ACCURATE_DB)


def claim_ratio(
    results: Results, name: str, ours: Timed | None, other: Timed | None, goal: float,
    low: bool = False,
) -> None:  # fmt: skip
    """Claim the ratio of two rows; a side that did not run makes it not met.

    low: judge the low end of the interval in place of the median.
    """
    found = None
    if ours is not None and other is not None and ours.duel is not None and other.duel is not None:
        found = ratio_of(ours.duel, other.duel)
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
        values |= {
            "threads": best.threads,
            "streams": best.streams,
            "chunk": best.chunk,
            "fixed_batch": best.fixed,
        }
    return values | {"runs_in": each.runs_in, "sqnr_db": each.sqnr_db} | run_values(each.run)


def duel_values(each: Timed) -> dict[str, Any]:
    """Return the columns of a finalist's row; of one that was none, nothing."""
    return {} if each.duel is None else {"finalist": each.row.name} | run_values(each.duel)


def run_values(run: SpeedRun) -> dict[str, Any]:
    """Return a run's figures with their intervals, and each round's images a second."""
    kept = (
        "p50_ms", "p50_ms_ci95", "p90_ms", "p90_ms_ci95", "p99_ms", "p99_ms_ci95", "images_per_s",
        "images_per_s_ci95", "latency_limit_ms", "latency_limit_met",
        "speedup", "speedup_ci95", "rounds", "sample_count", "baseline_spread", "note",
    )  # fmt: skip
    values = run.to_dict()
    return {"query": run.batch} | {name: values[name] for name in kept} | {
        "rounds_images_per_s": [
            round(slot.rate or slot.calls * run.batch / slot.wall_s, 3)
            for slot in run.samples.slots
            if run.has_rate
        ]
    }  # fmt: skip
