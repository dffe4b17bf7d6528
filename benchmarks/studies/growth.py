"""How the pipeline's time and memory grow with depth, calibration images and evaluation images.

    python -m benchmarks.studies.growth --data CIFAR10 [--keep DIR] [--quick] [--json] [-o FILE]

CIFAR ResNets with random weights, stage by stage, each in a process of its own on one thread.
CPU seconds are compared and not wall time, which other work on the machine changes; of several
runs the least counts. --keep writes growth.svg and growth.md there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from benchmarks.studies.base import Results, run_study
from benchmarks.studies.growth_fit import fit_of
from benchmarks.studies.growth_plot import plot, table
from benchmarks.studies.growth_stages import STAGES, Cost, Task, cost_of
from deploy_tools.artifacts import write_text
from deploy_tools.data import open_source
from deploy_tools.errors import UserError

MIB = 1 << 20
AUTO = "quantize, default"
"""The default's ranges are tried in the network: for each tensor half a run of it, for each
candidate. That is by the square of the depth, and not measured where it would take hours."""
LINEAR, SQUARE = 1.2, 2.2
"""Bounds of the exponents: 1 and 2, and what a busy machine adds."""
FLAT = 1.25

DEPTH, CALIBRATION, EVALUATION = "depth", "calibration images", "evaluation images"
BY_DEPTH = tuple(stage for stage in STAGES if stage != "report")
BY_CALIBRATION = ("calibrate", "quantize, corrected, mse", AUTO)
BY_EVALUATION = ("predict", "report")


@dataclass(frozen=True)
class Plan:
    """What one run of the study measures.

    depths: of the ResNets; the first is that of the other two axes. auto_depth: the largest with
    the default settings. images, evaluated: calibration and evaluation images by depth.
    repeats: of a stage, as long as it takes less than `again_s` seconds altogether.
    """

    depths: tuple[int, ...]
    auto_depth: int
    images: int
    evaluated: int
    calibration: tuple[int, ...]
    evaluation: tuple[int, ...]
    repeats: int
    again_s: float = 20.0


FULL = Plan(
    (20, 32, 44, 56, 110, 1202), 110, 64, 256,
    (64, 128, 256, 512, 1024, 2048), (625, 1250, 2500, 5000, 10_000), 3,
)  # fmt: skip
QUICK = Plan((20, 56, 110), 56, 16, 64, (32, 64, 128), (500, 1000, 2000), 1)


def main(results: Results, data: Path, keep: Path | None = None, depths: str = "") -> None:
    """Time and peak memory of each stage against depth, calibration and evaluation images."""
    plan = QUICK if results.quick else FULL
    if depths:
        plan = replace(plan, depths=_depths(depths))
    with tempfile.TemporaryDirectory() as folder:
        first = Task("", folder, plan.depths[0], str(data), plan.images, plan.evaluated)
        for axis, size, task in tasks(plan, first):
            cost, runs = _least(task, plan)
            results.row(axis=axis, stage=task.stage, size=size, **_figures(cost), runs=runs)
    rows = list(results.rows)
    fits = _fits(results, rows)
    if keep is not None:
        write_text(keep / "growth.svg", plot(rows))
        write_text(keep / "growth.md", table(rows, fits))


def _depths(text: str) -> tuple[int, ...]:
    """Parse "20,32"; what is no ResNet is refused where the model is built."""
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise UserError(f'"{text}" are no depths.', "Such as --depths 20,56,110.") from error


def tasks(plan: Plan, first: Task) -> Iterator[tuple[str, int, Task]]:
    """Yield (axis, size, task), each after those whose files it reads."""
    root = Path(first.folder)
    for depth in plan.depths:
        folder = root / str(depth)
        folder.mkdir()
        for stage in BY_DEPTH:
            if stage != AUTO or depth <= plan.auto_depth:
                task = replace(first, stage=stage, depth=depth, folder=str(folder))
                yield DEPTH, depth, task
    shallow = replace(first, folder=str(root / str(plan.depths[0])))
    train, test = (
        len(open_source("cifar10", Path(first.data), split)) for split in ("train", "test")
    )
    for count in _within(plan.calibration, train):
        for stage in BY_CALIBRATION:
            yield CALIBRATION, count, replace(shallow, stage=stage, calibration=count)
    for count in _within(plan.evaluation, test):
        for stage in BY_EVALUATION:
            yield EVALUATION, count, replace(shallow, stage=stage, evaluation=count)


def _within(counts: Sequence[int], available: int) -> list[int]:
    """Return the counts, none above what the split has."""
    return sorted({min(count, available) for count in counts})


def _least(task: Task, plan: Plan) -> tuple[Cost, int]:
    """Return the run with the least CPU time of a few, and how many there were."""
    costs = [cost_of(task)]
    while len(costs) < plan.repeats and sum(cost.seconds for cost in costs) < plan.again_s:
        costs.append(cost_of(task))
    return min(costs, key=lambda cost: cost.cpu_seconds), len(costs)


def _figures(cost: Cost) -> dict[str, float]:
    return {
        "seconds": cost.seconds,
        "cpu_seconds": cost.cpu_seconds,
        "start_mib": round(cost.start_rss_bytes / MIB, 1),
        "peak_mib": round(cost.peak_rss_bytes / MIB, 1),
    }


def _fits(results: Results, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add a row and a claim for each axis, stage and figure; returns the rows."""
    found = []
    for axis, stage in dict.fromkeys((row["axis"], row["stage"]) for row in rows):
        own = [row for row in rows if (row["axis"], row["stage"]) == (axis, stage)]
        sizes = [row["size"] for row in own]
        for figure in ("cpu_seconds", "peak_mib"):
            # Clocks tick in hundredths of a second.
            costs = [max(row[figure], 0.01) for row in own]
            try:
                fit = fit_of(sizes, costs)
            except UserError as error:
                results.say(f"{stage} by {axis}, {figure}: no fit, {error}")
                continue
            values = {"axis": axis, "stage": stage, "figure": figure, "slope": fit.slope}
            values |= {"intercept": fit.intercept, "r2": fit.r2, "exponent": fit.exponent}
            results.row(**values, between=f"{fit.low:g} and {fit.high:g}")
            found.append(values)
            _claim(results, axis, stage, figure, fit.exponent, costs[-1] / costs[0])
    return found


def _claim(
    results: Results, axis: str, stage: str, figure: str, exponent: float, ratio: float
) -> None:
    name = f"{stage} by {axis}"
    if figure == "cpu_seconds":
        bound = SQUARE if (stage, axis) == (AUTO, DEPTH) else LINEAR
        results.claim(f"{name}: exponent of the CPU time", exponent, "<=", bound)
    elif axis == DEPTH:  # a deeper network has more weights
        results.claim(f"{name}: exponent of the peak memory", exponent, "<=", 1.0)
    else:
        results.claim(f"{name}: peak memory, most over fewest images", ratio, "<=", FLAT)


_OPTIONS = [
    click.Option(
        ["--data"], type=click.Path(path_type=Path, exists=True), required=True,
        help="Folder of CIFAR-10.",
    ),
    click.Option(
        ["--keep"], type=click.Path(path_type=Path), help="Also write growth.svg and growth.md."
    ),
    click.Option(["--depths"], default="", help="Other depths, such as 20,56,110."),
]  # fmt: skip
command = run_study("growth", main, _OPTIONS)

if __name__ == "__main__":
    command()
