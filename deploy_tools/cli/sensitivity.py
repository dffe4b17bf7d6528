"""deploy-tools sensitivity: what each layer costs in INT8."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from click.core import ParameterSource
from numpy.typing import NDArray

from deploy_tools.artifacts import ArtifactDirectory, sha256_of_file, write_json, write_text
from deploy_tools.cli.common import (
    PathType,
    ProgressCallback,
    data_options,
    out_option,
    output_options,
    print_json,
    progress_bar,
)
from deploy_tools.cli.show import print_table
from deploy_tools.data import open_source
from deploy_tools.data.source import ImageSource, batches
from deploy_tools.errors import ArtifactError, MissingDependencyError, UserError
from deploy_tools.onnx_files import (
    input_spec_of,
    load_onnx,
    require_dynamic_batch,
    require_float_input,
)
from deploy_tools.quantization.targets import TARGETS
from deploy_tools.sensitivity.workers import ENGINES

if TYPE_CHECKING:
    from benchmarks.report.sensitivity import SensitivityBar
    from calibration.select import Selection
    from calibration.table import RangeTable
    from deploy_tools.data.spec import InputSpec
    from deploy_tools.sensitivity.layers import Sensitivity

_BATCH = 32


@click.command("sensitivity")
@click.argument("model", type=PathType)
@data_options("train")
@click.option("--images", type=click.IntRange(2), default=64, show_default=True, help="How many images to measure on; none of them calibrates.")  # fmt: skip
@click.option("--ranges", "ranges_file", type=PathType, metavar="FILE", help="The range table that calibrate wrote, its selection.json beside it. Default: calibrate here.")  # fmt: skip
@click.option("--calibration-images", type=click.IntRange(1), default=512, show_default=True, help="Without --ranges.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the choice of images.")  # fmt: skip
@click.option("--target", type=click.Choice(list(TARGETS)), default="ort-cpu", show_default=True, help="Whose layout and grids.")  # fmt: skip
@click.option("--per-tensor", is_flag=True, help="One weight scale a tensor instead of one a channel.")  # fmt: skip
@click.option("--left-out", is_flag=True, help="Also: everything in INT8 but each in float. Takes as long again.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes that share the work.")  # fmt: skip
@click.option("--engine", type=click.Choice(ENGINES), default="processes", show_default=True, help="Where they run: on this machine, or where Ray has its workers.")  # fmt: skip
@out_option()
@output_options
def command(
    model: Path,
    source: str,
    data: Path | None,
    split: str,
    images: int,
    ranges_file: Path | None,
    calibration_images: int,
    seed: int,
    target: str,
    per_tensor: bool,
    left_out: bool,
    workers: int,
    engine: str,
    out: Path,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """What each layer and residual branch of MODEL (FP32 ONNX) costs when it alone is in INT8.

    Writes sensitivity.json and sensitivity.svg. No image measures that calibrated. The results do
    not depend on --workers and --engine.

    \b
    Example:
      deploy-tools sensitivity out/fp32.onnx --source imagefolder --data photos \\
          --images 64 --workers 2 -o out
    """  # fmt: skip
    from deploy_tools.quantization.static import StaticConfig
    from deploy_tools.sensitivity.images import spare_images
    from deploy_tools.sensitivity.layers import SensitivityConfig, sensitivity_from_onnx
    from deploy_tools.sensitivity.run import Work

    _refuse_idle_options(ranges_file)
    proto = load_onnx(model)
    require_dynamic_batch(proto, model)
    require_float_input(proto, model)
    spec = input_spec_of(proto, model)
    loaded = open_source(source, data, split)
    with ArtifactDirectory(out) as directory, progress_bar(quiet) as progress:
        if ranges_file is None:
            table, used = _calibrated(model, loaded, spec, calibration_images, seed, progress)
        else:
            table, used = _loaded(model, ranges_file)
        chosen = spare_images(loaded, images, used.sha256, seed)
        if not chosen:
            raise UserError(
                f"every image of {source} {split} calibrates.",
                "Leave some to measure on: --calibration-images below the split's size.",
            )

        def held_out() -> Iterator[NDArray[np.float32]]:
            return (inputs for inputs, _ in batches(loaded, spec, _BATCH, chosen))

        config = SensitivityConfig(
            StaticConfig(target, not per_tensor), left_out=left_out, work=Work(engine, workers)
        )
        found = sensitivity_from_onnx(model, table, held_out, config, progress, len(chosen))
        bars = _bars(found)
        report = _report(found, bars, target, table, chosen, loaded)
        _write(directory, report, found, bars, table)
    if as_json:
        print_json(report)
    else:
        _show(found, bars, out)


def _calibrated(
    model: Path,
    source: ImageSource,
    spec: InputSpec,
    count: int,
    seed: int,
    progress: ProgressCallback | None,
) -> tuple[RangeTable, Selection]:
    from calibration.collect import CalibrateConfig, ranges_from_images
    from calibration.select import SelectConfig, select_images
    from deploy_tools.quantization.static import activation_tensors

    selection = select_images(source, SelectConfig(count, "stratified", seed))
    tensors = activation_tensors(load_onnx(model))
    config = CalibrateConfig()
    return ranges_from_images(model, tensors, source, selection, spec, config, progress), selection


def _loaded(model: Path, ranges: Path) -> tuple[RangeTable, Selection]:
    from calibration.select import FILE, Selection
    from calibration.table import RangeTable

    table = RangeTable.load(ranges)
    if table.model_sha256 != sha256_of_file(model):
        raise ArtifactError(f"{ranges} was made from another file than {model}.", "Calibrate it.")
    selection = Selection.load(ranges.parent / FILE)
    if selection.content_hash != table.data_sha256:
        raise ArtifactError(
            f"{ranges.parent / FILE} does not list the images that {ranges} was made from.",
            "Run calibrate again, or leave --ranges out.",
        )
    return table, selection


def _bars(found: Sensitivity) -> list[SensitivityBar]:
    from benchmarks.report.sensitivity import sensitivity_bars

    return sensitivity_bars(found.reference, found.alone, {i.name: i.kind for i in found.items})


def _report(
    found: Sensitivity,
    bars: list[SensitivityBar],
    target: str,
    table: RangeTable,
    chosen: tuple[int, ...],
    source: ImageSource,
) -> dict[str, Any]:
    from deploy_tools.data.source import source_hash

    values = found.to_dict()
    by_name = {bar.name: bar for bar in bars}
    for row in values["items"]:
        bar = by_name[row["name"]]
        ends = bar.sqnr_db.ends()
        row["sqnr_db_ci95"] = [end if np.isfinite(end) else None for end in ends]
        row["agreement"] = bar.agreement.estimate
        row["agreement_ci95"] = bar.agreement.ends()
    data = {"name": source.name, "split": source.split, "sha256": source_hash(source, chosen)}
    ranges = {"method": table.method, "sha256": table.key(), "images_sha256": table.data_sha256}
    return {"schema": 1, "target": target, "data": data, "ranges": ranges, **values}


def _write(
    directory: ArtifactDirectory,
    report: dict[str, Any],
    found: Sensitivity,
    bars: list[SensitivityBar],
    table: RangeTable,
) -> None:
    from benchmarks.report.sensitivity import as_file, sensitivity_plot

    settings = {"target": report["target"], "images": report["images"]}
    parents = {"fp32.onnx": table.model_sha256, "ranges": table.key(), "images": report["data"]["sha256"]}  # fmt: skip
    write_json(directory.path("sensitivity.json"), report)
    directory.add("sensitivity", "sensitivity.json", "sensitivity", settings, parents)
    try:
        plot = as_file(sensitivity_plot(bars, found.whole_db, "sensitivity"))
    except MissingDependencyError as error:
        click.echo(f"sensitivity.svg is not drawn: {error}", err=True)
        return
    write_text(directory.path("sensitivity.svg"), plot)
    directory.add("sensitivity.svg", "sensitivity.svg", "sensitivity", settings, parents)


def _show(found: Sensitivity, bars: list[SensitivityBar], out: Path) -> None:
    headers = ["only this in INT8", "kind", "SQNR dB [95 %]", "agreement % [95 %]"]
    if found.left_out:
        headers.append("dB gained in float")
    rows = []
    for bar in bars:
        sqnr, same = bar.sqnr_db, bar.agreement
        row = [
            bar.name,
            bar.kind,
            f"{sqnr.estimate:.2f} [{sqnr.low:.2f}, {sqnr.high:.2f}]",
            f"{100 * same.estimate:.2f} [{100 * same.low:.2f}, {100 * same.high:.2f}]",
        ]
        rows.append(row + ([f"{found.gain_db(bar.name):+.2f}"] if found.left_out else []))
    print_table(headers, rows)
    click.echo(f"Everything in INT8: {found.whole_db:.2f} dB on {found.images} images.")
    click.echo(f"Written: {out / 'sensitivity.json'}, and a plot of it beside.")


def _refuse_idle_options(ranges: Path | None) -> None:
    context = click.get_current_context()
    given = context.get_parameter_source("calibration_images") == ParameterSource.COMMANDLINE
    if given and ranges is not None:
        raise click.UsageError("--calibration-images has no effect here: --ranges is given.")
