"""deploy-tools calibrate: a range table from images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from deploy_tools.artifacts import ArtifactDirectory, sha256_of_file
from deploy_tools.cli.common import (
    PathType,
    data_options,
    out_option,
    output_options,
    print_json,
    progress_bar,
)  # fmt: skip
from deploy_tools.data import open_source
from deploy_tools.errors import ArtifactError
from deploy_tools.onnx_files import (
    input_spec_of,
    load_onnx,
    require_dynamic_batch,
    require_float_input,
)
from deploy_tools.recipe import RANGES

if TYPE_CHECKING:
    import onnx

    from calibration.identity import StatisticsIdentity
    from calibration.statistics import Statistics
    from calibration.table import RangeTable


@click.command("calibrate")
@click.argument("model", type=PathType)
@data_options("train")
@click.option(
    "--images", type=click.IntRange(1), default=512, show_default=True, help="How many images."
)
@click.option(
    "--choose",
    type=click.Choice(["stratified", "random", "list"]),
    default="stratified",
    show_default=True,
    help="How images are chosen.",
)
@click.option(
    "--list",
    "list_file",
    type=PathType,
    metavar="FILE",
    help="Image ids, one a line (with --choose list).",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the choice.")
@click.option(
    "--method",
    type=click.Choice(RANGES),
    default="mse",
    show_default=True,
    help="How ranges are chosen.",
)
@click.option(
    "--percentile",
    type=click.FloatRange(50, 100),
    default=99.999,
    show_default=True,
    help="With --method percentile.",
)
@click.option("--threads", type=click.IntRange(0), default=0, help="0 takes every core.")
@click.option(
    "--write-tensorrt-cache",
    is_flag=True,
    help="Also write calibration/tensorrt.cache, for a Jetson's trtexec.",
)
@click.option(
    "--tensorrt-version",
    metavar="X.Y.Z[.B]",
    help="With --write-tensorrt-cache: TensorRT's version on the device, up to 10.",
)
@out_option()
@output_options
def command(
    model: Path,
    source: str,
    data: Path | None,
    split: str,
    images: int,
    choose: str,
    list_file: Path | None,
    seed: int,
    method: str,
    percentile: float,
    threads: int,
    write_tensorrt_cache: bool,
    tensorrt_version: str | None,
    out: Path,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Run images through MODEL (FP32 ONNX) once and choose a range for every activation.

    Memory does not grow with the number of images. Writes calibration/selection.json,
    statistics.npz and ranges.json into the output folder; statistics that fit are used again.
    --method auto chooses a method for each tensor by what its range does to the logits, on a
    quarter of the images that is held out; it takes another two passes and the trials.

    \b
    Example:
      deploy-tools calibrate out/fp32.onnx --source imagefolder --data photos --split train \\
          --images 512 --method mse -o out

    A Jetson with DLA and TensorRT up to 10 wants the ranges as a calibration cache, with its own
    version in it. The outputs have no scale there, so the last layer runs in FP16.

    \b
      deploy-tools calibrate out/fp32.onnx --source imagefolder --data photos -o out \\
          --write-tensorrt-cache --tensorrt-version 10.3.0
      trtexec --onnx=out/fp32.onnx --shapes=input:1x3x224x224 --int8 --fp16 \\
          --calib=out/calibration/tensorrt.cache --useDLACore=0 --allowGPUFallback
    """  # fmt: skip
    from calibration import collect
    from calibration.identity import StatisticsIdentity
    from calibration.select import SelectConfig, select_images
    from calibration.statistics import FILE
    from deploy_tools.pipeline.images import CalibrationImages
    from deploy_tools.pipeline.ranges import AUTO, ranges_auto
    from deploy_tools.quantization.static import activation_tensors

    _refuse_idle_options(choose, method, write_tensorrt_cache)
    proto = load_onnx(model)
    require_dynamic_batch(proto, model)
    require_float_input(proto, model)
    spec = input_spec_of(proto, model)
    images_source = open_source(source, data, split)
    selection = select_images(images_source, SelectConfig(images, choose, seed, list_file))
    chosen = "mse" if method == AUTO else method
    config = collect.CalibrateConfig(method=chosen, percentile=percentile, threads=threads)
    tensors = activation_tensors(proto)
    if tensorrt_version is not None:
        _require_cacheable(tensorrt_version, proto, tensors)
    every = CalibrationImages(images_source, selection, lambda: spec)
    if method == AUTO:
        every.split()  # refuses too few images before any work
    folder = out / "calibration"
    statistics_path = folder / FILE
    identity = StatisticsIdentity.of(sha256_of_file(model), selection.content_hash, spec, tensors)
    parents = {"fp32.onnx": identity.model_sha256, "images": selection.content_hash}
    with ArtifactDirectory(out) as directory:
        statistics = _kept_statistics(statistics_path, identity)
        if statistics is None:
            with progress_bar(quiet) as progress:
                statistics = collect.statistics_from_images(
                    model, tensors, images_source, selection, spec, config, progress
                )
            selection.save(folder)
            statistics.save(statistics_path)
            drawn = {"choose": choose, "images": len(selection), "seed": seed}
            directory.add("selection", "calibration/selection.json", "select", drawn, parents)
            directory.add("statistics", f"calibration/{FILE}", "calibrate", {}, parents)
        if method == AUTO:
            with progress_bar(quiet) as progress:
                table = ranges_auto(model, every, config=config, progress=progress)[0]
        else:
            table = collect.ranges_from_statistics(statistics, config)
        table.save(folder / "ranges.json")
        settings = {"method": method, **table.settings}
        directory.add("ranges", "calibration/ranges.json", "calibrate", settings, parents)
        written = {"file": str(folder / "ranges.json")}
        if tensorrt_version is not None:
            written["tensorrt_cache"] = _write_cache(directory, table, proto, tensorrt_version)
    if as_json:
        print_json({**written, "tensors": len(table.tensors)})
        return
    click.echo(table if verbose else f"{len(table.tensors)} ranges, {method}, {selection}")
    click.echo(f"{' and '.join(written.values())} written.")


def _kept_statistics(path: Path, identity: StatisticsIdentity) -> Statistics | None:
    """Return the statistics of an earlier call where they fit; a damaged file is made again."""
    from calibration.statistics import Statistics

    try:
        found = Statistics.load(path)
    except ArtifactError:
        return None
    return found if found.identity == identity else None


def _require_cacheable(version: str, proto: onnx.ModelProto, tensors: tuple[str, ...]) -> None:
    """Refuse a version or a tensor name before the images are run rather than after."""
    from calibration.tensorrt_cache import require_cache_name, require_readable

    require_readable(version, proto)
    for name in tensors:
        require_cache_name(name)


def _write_cache(
    directory: ArtifactDirectory, table: RangeTable, proto: onnx.ModelProto, version: str
) -> str:
    """Write the ranges as TensorRT's calibration cache; return where."""
    from calibration.tensorrt_cache import FILE, write_tensorrt_cache

    file = f"calibration/{FILE}"
    path = directory.path(file)
    write_tensorrt_cache(table, proto, path, version)
    ranges = directory.artifacts["ranges"].sha256
    settings = {"tensorrt_version": version}
    directory.add("tensorrt-cache", file, "calibrate", settings, {"ranges": ranges})
    return str(path)


def _refuse_idle_options(choose: str, method: str, cache: bool) -> None:
    """Refuse an option that the others leave without effect: its user expects one."""
    context = click.get_current_context()
    drawn = "--choose stratified or --choose random"
    for name, used, needed in (
        ("percentile", method == "percentile", "--method percentile"),
        ("images", choose != "list", drawn),
        ("seed", choose != "list", drawn),
        ("list_file", choose == "list", "--choose list"),
        ("tensorrt_version", cache, "--write-tensorrt-cache"),
    ):
        if context.get_parameter_source(name) == ParameterSource.COMMANDLINE and not used:
            option = name.removesuffix("_file").replace("_", "-")
            raise click.UsageError(f"--{option} has no effect here: it goes with {needed}.")
    if cache and context.params["tensorrt_version"] is None:
        raise click.UsageError(
            "--write-tensorrt-cache needs --tensorrt-version, TensorRT's version on the device."
        )
