"""Range tables of a float file in an artifact directory: one pass over the images for all methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from calibration.collect import CalibrateConfig, ranges_from_statistics, statistics_from_images
from calibration.identity import RangeIdentity
from calibration.margin import margin_of, with_margin
from calibration.methods import METHODS
from calibration.statistics import Statistics
from calibration.table import RangeTable, TensorRange
from deploy_tools.artifacts import Artifact
from deploy_tools.onnx_files import load_onnx
from deploy_tools.pipeline.images import CalibrationImages
from deploy_tools.pipeline.stages import Progress, StageRunner
from deploy_tools.quantization.static import activation_tensors
from deploy_tools.sensitivity.auto_ranges import GRIDS, AutoRangesConfig, auto_ranges
from deploy_tools.sensitivity.run import Work

AUTO = "auto"


def calibrated_ranges(
    runner: StageRunner,
    model: Artifact,
    images: CalibrationImages,
    method: str,
    config: CalibrateConfig,
    grid: str = "u8",
) -> Artifact:
    """Return the range table's artifact; the pass over the images is shared by all methods.

    grid: "u8" or "s8", the only one that "auto" chooses for, since each choice takes trials.
    """
    suffix = "" if model.file == "fp32.onnx" else f"-{model.sha256[:8]}"
    parents = {"model": model.sha256, "images": images.selection.content_hash}
    variety = f"-{grid}" if method == AUTO else _percentile(method, config)
    name = f"ranges-{method}{variety}{suffix}"
    file = f"calibration/{name}.json"
    path = runner.directory.path(model.file)
    if method == AUTO:

        def choose_auto(target: Path) -> Mapping[str, Any]:
            table, chosen = ranges_auto(path, images, (grid,), config, runner.progress)
            table.save(target)
            return {"method": AUTO, "chosen": {tensor: c[grid] for tensor, c in chosen.items()}}

        wanted = {"method": AUTO, "grid": grid, "percentile": config.percentile}
        return runner.run("calibrate", name, file, wanted, parents, choose_auto)

    def collect(target: Path) -> Mapping[str, Any]:
        statistics = _observed(path, images, config, runner.progress)
        statistics.save(target)
        return {"images": statistics.images, "tensors": len(statistics.tensors)}

    kept = f"statistics{suffix}"
    statistics = runner.run("calibrate", kept, f"calibration/{kept}.npz", {}, parents, collect)

    def choose(target: Path) -> Mapping[str, Any]:
        found = Statistics.load(runner.directory.path(statistics.file))
        table = ranges_from_statistics(found, config)
        table.save(target)
        return {"method": table.method}

    return runner.run(
        "calibrate", name, file, {"method": config.method, "percentile": config.percentile},
        {"statistics": statistics.sha256}, choose,
    )  # fmt: skip


def ranges_auto(
    model: Path,
    images: CalibrationImages,
    grids: Sequence[str] = GRIDS,
    config: CalibrateConfig | None = None,
    progress: Progress | None = None,
) -> tuple[RangeTable, dict[str, dict[str, str]]]:
    """Return a table with, for each tensor and grid, the method that errs least, and which it is.

    The methods choose on three quarters of the calibration images and are judged by the logits
    on the held-out quarter: another one than "minmax" must err clearly less. The ranges of the
    table then come from all of them. From fewer than 512 images they are widened
    (`calibration.margin`). On a grid that is not asked for the table has the ranges of "minmax".
    """
    config = config or CalibrateConfig()
    kept, held = images.split()
    work = Work(threads=config.threads)
    first = _observed(model, kept, config, progress)
    candidates = {name: _table(first, config, name, images) for name in METHODS}
    chosen = auto_ranges(
        model, candidates, held, AutoRangesConfig(tuple(grids), work=work), progress, len(held)
    )
    second = _observed(model, held, config, progress)
    every = _together(first, second, images)
    tables = {name: _table(every, config, name, images) for name in METHODS}
    margin = {"margin": margin_of(every.images)}
    table = RangeTable(
        identity=RangeIdentity(every.identity, AUTO, margin),
        images=every.images,
        input_spec=every.input_spec,
        tool=next(iter(tables.values())).tool,
        tensors={
            name: _mixed(tables, name, chosen.get(name, {})) for name in every.tensors
        },
    )  # fmt: skip
    return table, chosen


def _observed(
    model: Path, images: CalibrationImages, config: CalibrateConfig, progress: Progress | None
) -> Statistics:
    return statistics_from_images(
        model, activation_tensors(load_onnx(model)), images.source, images.selection, images.spec,
        config, progress,
    )  # fmt: skip


def _table(
    statistics: Statistics, config: CalibrateConfig, method: str, images: CalibrationImages
) -> RangeTable:
    table = ranges_from_statistics(statistics, replace(config, method=method))
    spec = images.spec
    return with_margin(table, statistics, {spec.input_name: spec.value_bounds()})


def _together(first: Statistics, second: Statistics, images: CalibrationImages) -> Statistics:
    """Return the statistics of both parts of the images; merging is exact."""
    identity = replace(first.identity, data_sha256=images.selection.content_hash)
    merged = {name: one.merge(second.tensors[name]) for name, one in first.tensors.items()}
    return Statistics(identity, first.images + second.images, first.input_spec, merged)


def _mixed(tables: Mapping[str, RangeTable], tensor: str, chosen: Mapping[str, str]) -> TensorRange:
    one = next(iter(tables.values())).tensors[tensor]
    source = {grid: tables[chosen.get(grid, "minmax")].tensors[tensor] for grid in GRIDS}
    return replace(
        one,
        ranges={grid: source[grid].ranges[grid] for grid in GRIDS},
        clipped={grid: source[grid].clipped[grid] for grid in GRIDS},
    )


def _percentile(method: str, config: CalibrateConfig) -> str:
    return f"-{config.percentile:g}" if method == "percentile" else ""
