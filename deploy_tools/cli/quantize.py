"""deploy-tools quantize dynamic | static | qat: INT8 ONNX files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from deploy_tools.artifacts import ArtifactDirectory, sha256_of_file
from deploy_tools.cli.common import (
    PathType,
    data_options,
    input_option,
    out_option,
    output_options,
    print_json,
    progress_bar,
)
from deploy_tools.cli.pixels import add_uint8_file
from deploy_tools.data import open_source
from deploy_tools.errors import ArtifactError
from deploy_tools.onnx_files import input_spec_of, load_onnx, require_dynamic_batch
from deploy_tools.quantization.static import StaticConfig
from deploy_tools.quantization.summary import QuantizationSummary, describe_quantization
from deploy_tools.quantization.targets import TARGETS
from deploy_tools.recipe import RANGES, ROUNDINGS, QatTable

F = TypeVar("F", bound=Callable[..., Any])
_SHORT = {"ort-cpu": "ort"}
_IMAGE_OPTIONS = (
    "source", "data", "split", "images", "seed", "method", "equalize", "rounding",
    "bias_correction",
)  # fmt: skip


@click.group("quantize")
def command() -> None:
    """Write an INT8 file: dynamic (no images), static, or fine-tuned (qat)."""


@command.command("dynamic")
@click.argument("model", type=PathType)
@click.option(
    "--include-conv",
    is_flag=True,
    help="Convolutions too (ConvInteger): smaller, and slower than FP32 on most CPUs.",
)
@click.option("--exclude", multiple=True, metavar="NODE", help="A node that stays in float.")
@input_option
@out_option()
@output_options
def dynamic(
    model: Path,
    include_conv: bool,
    exclude: tuple[str, ...],
    input_dtype: str,
    out: Path,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Quantize the weights of MODEL's Gemm and MatMul; activations are quantized as it runs.

    \b
    Example:
      deploy-tools quantize dynamic out/fp32.onnx -o out
    """  # fmt: skip
    from deploy_tools.quantization.dynamic import DynamicConfig, dynamic_from_onnx

    path = out / ("int8-dynamic-conv-ort.onnx" if include_conv else "int8-dynamic-ort.onnx")
    require_dynamic_batch(load_onnx(model), model)
    config = DynamicConfig(include_conv, exclude)
    with ArtifactDirectory(out) as directory:
        summary = dynamic_from_onnx(model, path, config)
        parents = {"fp32.onnx": sha256_of_file(model)}
        directory.add(path.name, path.name, "quantize", asdict(config), parents)
    path = _with_input(path, input_dtype, "ort-cpu")
    _show(path, model, summary, as_json, verbose)


def _shared(function: F) -> F:
    """The options of static and qat: which layers, how, from which images."""
    for option in reversed((
        click.option("--target", type=click.Choice(list(TARGETS)), default="ort-cpu", show_default=True, help="Where the file will run."),
        click.option("--per-tensor", is_flag=True, help="One weight scale a tensor instead of one a channel."),
        click.option("--exclude", multiple=True, metavar="NODE", help="A node that stays in float."),
        click.option("--float-first", is_flag=True, help="Leave the first convolution in float."),
        click.option("--float-last", is_flag=True, help="Leave the final Gemm in float."),
        click.option("--float-branch", multiple=True, metavar="ADD", help="A residual Add whose main branch is not quantized; all for every one."),
        data_options("train", required=False),
        click.option("--images", type=click.IntRange(4), default=512, show_default=True, help="How many calibration images."),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of their choice."),
        click.option("--method", type=click.Choice(RANGES), default="auto", show_default=True, help="How ranges are chosen."),
        click.option("--equalize/--no-equalize", default=True, show_default=True, help="Rescale channels against each other."),
        click.option("--rounding", type=click.Choice(ROUNDINGS), default="gptq", show_default=True, help="How weights are rounded."),
        click.option("--bias-correction/--no-bias-correction", default=None, help="Default: where held-out calibration images say that it helps."),
        input_option,
    )):  # fmt: skip
        function = option(function)
    return function


@command.command("static")
@click.argument("model", type=PathType)
@click.option("--ranges", "ranges_file", type=PathType, metavar="FILE", help="A range table that calibrate wrote, instead of images: no corrections.")  # fmt: skip
@_shared
@out_option()
@output_options
def static(model: Path, ranges_file: Path | None, out: Path, as_json: bool, quiet: bool,
           verbose: bool, **given: Any) -> None:  # fmt: skip
    """Write MODEL with Q/DQ for a target, from calibration images or from a range table.

    With images the weights are corrected first (equalized, rounded by GPTQ, biases) and the
    ranges are chosen by what they do to the logits; all that on the calibration images alone.

    \b
    Example:
      deploy-tools quantize static out/fp32.onnx --source imagefolder --data photos \\
          --target openvino -o out
      deploy-tools quantize static out/fp32.onnx --ranges out/calibration/ranges.json -o out
    """  # fmt: skip
    require_dynamic_batch(load_onnx(model), model)
    config = _static_config(given)
    path = out / f"int8-static-{_SHORT.get(config.target, config.target)}.onnx"
    if ranges_file is None:
        summary = _from_images(model, path, config, given, quiet)
    else:
        _refuse_idle(_IMAGE_OPTIONS, "--ranges")
        summary = _from_ranges(model, ranges_file, path, config)
    path = _with_input(path, given["input_dtype"], config.target)
    _show(path, model, summary, as_json, verbose)


@command.command("qat")
@click.argument("model", type=PathType)
@_shared
@click.option("--epochs", type=click.IntRange(1), default=QatTable.epochs, show_default=True, help="Passes over the images.")  # fmt: skip
@click.option("--labels-weight", type=click.FloatRange(0), default=QatTable.labels_weight, show_default=True, help="Of the labels' loss beside the FP32 model's logits.")  # fmt: skip
@click.option("--training-images", type=click.IntRange(0), default=0, show_default=True, help="How many images of the split to train on; 0 takes the calibration images.")  # fmt: skip
@out_option()
@output_options
def qat(model: Path, out: Path, as_json: bool, quiet: bool, verbose: bool, epochs: int,
        labels_weight: float, training_images: int, **given: Any) -> None:  # fmt: skip
    """Fine-tune MODEL (float ONNX) under its own Q/DQ plan and write the INT8 file.

    It learns from the logits of MODEL itself, so it needs no labels; a part of the images is
    held out to choose the epoch. A recipe's [variant.qat] has more settings.

    \b
    Example:
      deploy-tools quantize qat out/fp32.onnx --source cifar10 --data cifar --images 500 -o out
    """  # fmt: skip
    require_dynamic_batch(load_onnx(model), model)
    config = _static_config(given)
    path = out / f"int8-qat-{_SHORT.get(config.target, config.target)}.onnx"
    table = QatTable(
        epochs=epochs, labels_weight=labels_weight, images=training_images, seed=given["seed"]
    )
    summary = _from_images(model, path, config, given, quiet, table)
    path = _with_input(path, given["input_dtype"], config.target)
    _show(path, model, summary, as_json, verbose)


def _with_input(path: Path, input_dtype: str, target: str) -> Path:
    """Return the file that the user asked for: the one with a float input, or one for pixels."""
    if input_dtype == "float32":
        return path
    with ArtifactDirectory(path.parent) as directory:
        return add_uint8_file(directory, path, target)


def _static_config(given: dict[str, Any]) -> StaticConfig:
    return StaticConfig(
        given["target"],
        not given["per_tensor"],
        given["exclude"],
        not given["float_first"],
        not given["float_last"],
        given["float_branch"],
    )


def _from_ranges(
    model: Path, ranges_file: Path, path: Path, config: StaticConfig
) -> QuantizationSummary:
    from calibration.table import RangeTable
    from deploy_tools.quantization.static import qdq_from_onnx

    table = RangeTable.load(ranges_file)
    if table.model_sha256 != sha256_of_file(model):
        raise ArtifactError(
            f"{ranges_file} was made from another file than {model}.", "Run calibrate on it."
        )
    with ArtifactDirectory(path.parent) as directory:
        summary = qdq_from_onnx(model, table, path, config)
        parents = {"fp32.onnx": table.model_sha256, "ranges": sha256_of_file(ranges_file)}
        directory.add(path.name, path.name, "quantize", asdict(config), parents)
    return summary


def _from_images(
    model: Path,
    path: Path,
    config: StaticConfig,
    given: dict[str, Any],
    quiet: bool,
    qat: QatTable | None = None,
) -> QuantizationSummary:
    from calibration.select import SelectConfig, select_images
    from deploy_tools.pipeline.images import CalibrationImages
    from deploy_tools.pipeline.int8_settings import Int8Settings
    from deploy_tools.pipeline.workshop import open_workshop
    from deploy_tools.quantization.static import require_float

    if given["source"] is None:
        raise click.UsageError(
            "give calibration images (--source, --data)"
            + ("." if qat else " or a range table (--ranges).")
        )
    proto = load_onnx(model)
    require_float(proto, model)
    spec = input_spec_of(proto, model)
    source = open_source(given["source"], given["data"], given["split"])
    chosen = select_images(source, SelectConfig(given["images"], "stratified", given["seed"]))
    images = CalibrationImages(source, chosen, lambda: spec)
    settings = Int8Settings(
        config,
        ranges=given["method"],
        equalize=given["equalize"],
        rounding=given["rounding"],
        bias_correction=given["bias_correction"],
    )
    with (
        progress_bar(quiet) as progress,
        open_workshop(path.parent, model, images, progress) as workshop,
    ):
        workshop.make(settings, path, qat)
        workshop.runner.directory.add(
            path.name, path.name, "quantize",
            _plain(asdict(settings) | ({"qat": asdict(qat)} if qat else {})),
            {"fp32.onnx": sha256_of_file(model), "images": chosen.content_hash},
        )  # fmt: skip
    return describe_quantization(load_onnx(path))


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings with lists for tuples, as JSON has them."""
    return {
        key: _plain(value) if isinstance(value, dict)
        else list(value) if isinstance(value, tuple) else value
        for key, value in settings.items()
    }  # fmt: skip


def _refuse_idle(options: Iterable[str], reason: str) -> None:
    """Refuse an option that has no effect here: its user expects one."""
    context = click.get_current_context()
    for name in options:
        if context.get_parameter_source(name) == ParameterSource.COMMANDLINE:
            option = name.replace("_", "-")
            raise click.UsageError(f"--{option} has no effect with {reason}.")


def _show(
    path: Path, model: Path, summary: QuantizationSummary, as_json: bool, verbose: bool
) -> None:
    before, after = model.stat().st_size, path.stat().st_size
    if as_json:
        print_json({"file": str(path), "size_bytes": after, **summary.to_dict()})
        return
    if verbose:
        click.echo(summary)
    click.echo(
        f"{path}: {summary.quantized_layers} of {len(summary.layers)} layers in INT8 "
        f"({summary.quantized_share:.1%} of the weights), {len(summary.activations)} activations; "
        f"{before / 1e6:.2f} -> {after / 1e6:.2f} MB"
    )
