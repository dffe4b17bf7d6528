"""deploy-tools export: checkpoint -> FP32 ONNX."""

from __future__ import annotations

from pathlib import Path

import click

from deploy_tools.artifacts import ArtifactDirectory
from deploy_tools.cli.common import (
    input_option,
    input_options,
    model_options,
    out_option,
    output_options,
    print_json,
)  # fmt: skip
from deploy_tools.cli.model import input_table
from deploy_tools.cli.pixels import add_uint8_file
from deploy_tools.errors import require
from deploy_tools.recipe import ModelTable


@click.command("export")
@model_options
@input_options
@click.option("--no-fuse", is_flag=True, help="Do not fold BatchNorm first.")
@click.option(
    "--opset",
    type=click.IntRange(18, 23),
    default=20,
    show_default=True,
    help="ONNX operator set; 20 is what every target reads.",
)
@input_option
@out_option()
@output_options
def command(
    arch: str,
    checkpoint: Path | None,
    weights: str,
    num_classes: int | None,
    no_fuse: bool,
    opset: int,
    input_dtype: str,
    out: Path,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **given: str | int | None,
) -> None:
    """Fold BatchNorm and export to fp32.onnx with a dynamic batch.

    The file is checked against the torch module at batch sizes other than the traced one and
    holds its input spec (size, mean, std, labels) as metadata. With --input uint8 there is a
    second file, fp32-uint8.onnx, that takes pixels; calibrate and quantize want the first.

    \b
    Example:
      deploy-tools export --arch resnet20-cifar --checkpoint checkpoint.safetensors -o out
    """  # fmt: skip
    require("torch", "torch", "export")
    from deploy_tools.export import ExportConfig, onnx_from_module
    from deploy_tools.pipeline.model import fold_model, load_model, model_parents

    table = ModelTable(arch, str(checkpoint or ""), weights, num_classes)
    loaded = load_model(table, input_table(given))
    module = loaded.module
    if not no_fuse:
        module, folded = fold_model(loaded)
        if verbose:
            click.echo(folded)
    path = out / "fp32.onnx"
    config = ExportConfig(opset=opset)
    with ArtifactDirectory(out) as directory:
        report = onnx_from_module(module, loaded.spec, path, config, loaded.metadata)
        settings = {"arch": arch, "opset": opset, "fuse": not no_fuse}
        directory.add("fp32.onnx", "fp32.onnx", "export", settings, model_parents(table))
        files = [path]
        if input_dtype == "uint8":
            files.append(add_uint8_file(directory, path, "ort-cpu"))
    if as_json:
        differences = {str(batch): value for batch, value in report.max_abs.items()}
        print_json(
            {"file": str(files[-1]), "size_bytes": files[-1].stat().st_size, "max_abs": differences}
        )
    else:
        click.echo(report)
        for file in files[1:]:
            click.echo(f"{file}: takes uint8 pixels.")
