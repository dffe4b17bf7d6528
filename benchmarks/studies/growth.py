"""How the pipeline's time and memory grow with depth, calibration images and evaluation images.

    python -m benchmarks.studies.growth --data CIFAR10 [--keep DIR] [--quick] [--json] [-o FILE]

CIFAR ResNets with random weights, stage by stage, each in a process of its own on one core.
CPU seconds are compared and not wall time, which other work on the machine changes; of several
runs the least counts. A stage that fails is a row with the reason, and so are those that would
have read its file. --keep writes growth.svg and growth.md there (growth-part, where --quick,
--axis or --depths leave something out); rows are kept as they come, in FILE.part with -o and in
growth.md.part with --keep.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from benchmarks.environment import describe_environment
from benchmarks.peers.worker import short
from benchmarks.studies.base import Results, run_study
from benchmarks.studies.growth_fit import fit_of
from benchmarks.studies.growth_plot import plot, table
from benchmarks.studies.growth_stages import STAGES, Cost, Task, cost_of
from deploy_tools.artifacts import write_text
from deploy_tools.data import open_source
from deploy_tools.errors import UserError, require

MIB = 1 << 20
AUTO = "quantize, default"
"""The default's ranges are tried in the network: for each tensor half a run of it, for each
candidate. That is by the square of the depth, and not measured where it would take hours."""
LINEAR, SQUARE = 1.2, 2.2
"""Bounds of the exponents: 1 and 2, and what a busy machine adds."""
FLAT = 1.25
_NAMED = ("deploy-tools", "torch", "onnx", "onnxruntime")

DEPTH, CALIBRATION, EVALUATION = "depth", "calibration images", "evaluation images"
AXES = (DEPTH, CALIBRATION, EVALUATION)
BY_DEPTH = tuple(stage for stage in STAGES if stage != "report")
BY_CALIBRATION = ("calibrate", "quantize, corrected, mse", AUTO)
BY_EVALUATION = ("predict", "report")


@dataclass(frozen=True)
class Plan:
    """What one run of the study measures.

    depths: of the ResNets, rising; the first is that of the other two axes. auto_depth: the
    largest with the default settings, on any axis. images, evaluated: calibration and evaluation images by depth.
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


def main(
    results: Results,
    data: Path,
    keep: Path | None = None,
    depths: str = "",
    axes: tuple[str, ...] = (),
) -> None:
    """Time and peak memory of each stage against depth, calibration and evaluation images."""
    plan = QUICK if results.quick else FULL
    if depths:
        plan = replace(plan, depths=_depths(depths))
    if keep is not None:
        require("matplotlib", "report", "The picture of the study")
    # Only the whole study has the plain name, so that no part replaces it.
    name = "growth-part" if results.quick or depths or axes else "growth"
    with tempfile.TemporaryDirectory() as folder:
        first = Task("", folder, plan.depths[0], str(data), plan.images, plan.evaluated)
        for axis, size, task in tasks(plan, first, axes or AXES):
            row = {"axis": axis, "stage": task.stage, "size": size}
            try:
                cost, runs = _least(task, plan)
            except UserError as error:
                results.row(**row, status="did not run", reason=short(str(error)))
                continue
            results.row(**row, **_figures(cost), runs=runs)
            if keep is not None:
                write_text(keep / f"{name}.md.part", _page(results, ()))
    rows = measured(results)
    fits = _fits(results, rows)
    if keep is not None:
        write_text(keep / f"{name}.svg", plot(rows, _made_by(results)))
        write_text(keep / f"{name}.md", _page(results, fits))
        (keep / f"{name}.md.part").unlink(missing_ok=True)


def measured(results: Results) -> list[dict[str, Any]]:
    """Return the rows of the stages that ran, by axis and rising size."""
    rows = [row for row in results.rows if "peak_mib" in row]
    return sorted(rows, key=lambda row: (AXES.index(row["axis"]), row["size"]))


def _page(results: Results, fits: Sequence[dict[str, Any]]) -> str:
    """Return Markdown: command and machine, the table of what was measured, what did not run."""
    parts = [_made_by(results), table(measured(results), fits).rstrip()]
    failed = [
        f"- {row['stage']} by {row['axis']}, {row['size']}: {row['reason']}"
        for row in results.rows
        if "reason" in row
    ]
    if failed:
        parts += ["Did not run:", "\n".join(failed)]
    return "\n\n".join(parts) + "\n"


def _made_by(results: Results) -> str:
    """Say by which command, on what and with what."""
    found = describe_environment()
    cpu, packages = found["cpu"], found["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in _NAMED if name in packages)
    machine = f"{cpu['model']}, {cpu['cores_usable']} cores, {found['os']}"
    return f"`{results.command}`: {machine}; {versions}."


def _depths(text: str) -> tuple[int, ...]:
    """Parse "20,32"; what is no ResNet is refused where the model is built."""
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise UserError(f'"{text}" are no depths.', "Such as --depths 20,56,110.") from error


def tasks(plan: Plan, first: Task, axes: Sequence[str] = AXES) -> Iterator[tuple[str, int, Task]]:
    """Yield (axis, size, task), each after those whose files it reads.

    What takes longest comes last: the default's ranges, and before them the deepest network. The
    first depth is always done, since the other two axes read its files.
    """
    late: list[tuple[str, int, Task]] = []
    deepest = plan.depths[-1]
    for depth in plan.depths if DEPTH in axes else plan.depths[:1]:
        if depth != deepest or depth == plan.depths[0]:
            yield from _held_back(_by_depth(plan, first, depth), late)
    yield from _held_back(_by_images(plan, first, axes), late)
    if DEPTH in axes and len(plan.depths) > 1:
        yield from _held_back(_by_depth(plan, first, deepest), late)
    for axis, size, task in late:
        if axis in axes and task.depth <= plan.auto_depth:
            yield axis, size, task


def _held_back(
    found: Iterator[tuple[str, int, Task]], late: list[tuple[str, int, Task]]
) -> Iterator[tuple[str, int, Task]]:
    """Hand on what has no default ranges; the rest is for later."""
    for each in found:
        if each[2].stage == AUTO:
            late.append(each)
        else:
            yield each


def _by_depth(plan: Plan, first: Task, depth: int) -> Iterator[tuple[str, int, Task]]:
    folder = Path(first.folder) / str(depth)
    folder.mkdir()
    for stage in BY_DEPTH:
        yield DEPTH, depth, replace(first, stage=stage, depth=depth, folder=str(folder))


def _by_images(plan: Plan, first: Task, axes: Sequence[str]) -> Iterator[tuple[str, int, Task]]:
    shallow = replace(first, folder=str(Path(first.folder) / str(plan.depths[0])))
    train, test = (
        len(open_source("cifar10", Path(first.data), split)) for split in ("train", "test")
    )
    for count in _within(plan.calibration, train) if CALIBRATION in axes else ():
        for stage in BY_CALIBRATION:
            yield CALIBRATION, count, replace(shallow, stage=stage, calibration=count)
    for count in _within(plan.evaluation, test) if EVALUATION in axes else ():
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
    click.Option(
        ["--axis", "axes"], multiple=True, type=click.Choice(AXES),
        help="Only this one; beside it, the first depth's files are made.",
    ),
]  # fmt: skip
command = run_study("growth", main, _OPTIONS)

if __name__ == "__main__":
    command()
