"""deploy-tools quantize dynamic | static: INT8 ONNX files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from deploy_tools.artifacts import ArtifactDirectory, sha256_of_file
from deploy_tools.cli.common import PathType, out_option, output_options, print_json
from deploy_tools.errors import ArtifactError
from deploy_tools.onnx_files import load_onnx, require_dynamic_batch
from deploy_tools.quantization.summary import QuantizationSummary
from deploy_tools.quantization.targets import TARGETS


@click.group("quantize")
def command() -> None:
    """Write an INT8 file: dynamic (no images) or static (from a range table)."""


@command.command("dynamic")
@click.argument("model", type=PathType)
@click.option(
    "--include-conv",
    is_flag=True,
    help="Convolutions too (ConvInteger): smaller, and slower than FP32 on most CPUs.",
)
@click.option("--exclude", multiple=True, metavar="NODE", help="A node that stays in float.")
@out_option()
@output_options
def dynamic(
    model: Path,
    include_conv: bool,
    exclude: tuple[str, ...],
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
    _show(path, model, summary, as_json, verbose)


@command.command("static")
@click.argument("model", type=PathType)
@click.option(
    "--ranges",
    "ranges_file",
    type=PathType,
    required=True,
    metavar="FILE",
    help="The range table that calibrate wrote.",
)
@click.option(
    "--target",
    type=click.Choice(list(TARGETS)),
    default="ort-cpu",
    show_default=True,
    help="Where the file will run.",
)
@click.option(
    "--per-tensor", is_flag=True, help="One weight scale a tensor instead of one a channel."
)
@click.option("--exclude", multiple=True, metavar="NODE", help="A node that stays in float.")
@click.option("--float-first", is_flag=True, help="Leave the first convolution in float.")
@click.option("--float-last", is_flag=True, help="Leave the final Gemm in float.")
@out_option()
@output_options
def static(
    model: Path,
    ranges_file: Path,
    target: str,
    per_tensor: bool,
    exclude: tuple[str, ...],
    float_first: bool,
    float_last: bool,
    out: Path,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Write MODEL with Q/DQ for a target, from a range table.

    \b
    Example:
      deploy-tools quantize static out/fp32.onnx --ranges out/calibration/ranges.json \\
          --target openvino -o out
    """  # fmt: skip
    from calibration.table import RangeTable
    from deploy_tools.quantization.static import StaticConfig, qdq_from_onnx

    require_dynamic_batch(load_onnx(model), model)
    table = RangeTable.load(ranges_file)
    if table.model_sha256 != sha256_of_file(model):
        raise ArtifactError(
            f"{ranges_file} was made from another file than {model}.", "Run calibrate on it."
        )
    path = out / f"int8-static-{'ort' if target == 'ort-cpu' else target}.onnx"
    config = StaticConfig(target, not per_tensor, exclude, not float_first, not float_last)
    with ArtifactDirectory(out) as directory:
        summary = qdq_from_onnx(model, table, path, config)
        parents = {"fp32.onnx": table.model_sha256, "ranges": sha256_of_file(ranges_file)}
        directory.add(path.name, path.name, "quantize", asdict(config), parents)
    _show(path, model, summary, as_json, verbose)


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
