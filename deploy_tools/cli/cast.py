"""deploy-tools cast fp16: the same model in half precision."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from deploy_tools.artifacts import ArtifactDirectory, sha256_of_file
from deploy_tools.cli.common import PathType, out_option, output_options, print_json


@click.group("cast")
def command() -> None:
    """Write a file with another floating-point type."""


@command.command("fp16")
@click.argument("model", type=PathType)
@out_option()
@output_options
def fp16(model: Path, out: Path, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Write MODEL with FP16 weights and arithmetic; its input and outputs stay FP32.

    MODEL is an FP32 file, or one that was quantized with --target tensorrt: its INT8 layers
    stay INT8 and the rest becomes FP16.

    \b
    Example:
      deploy-tools cast fp16 out/fp32.onnx -o out
    """
    from deploy_tools.quantization.cast import fp16_from_onnx

    path = out / ("fp16.onnx" if model.stem == "fp32" else f"{model.stem}-fp16.onnx")
    with ArtifactDirectory(out) as directory:
        report = fp16_from_onnx(model, path)
        parents = {model.name: sha256_of_file(model)}
        directory.add(path.name, path.name, "cast", {"to": "fp16"}, parents, asdict(report))
    before, after = model.stat().st_size, path.stat().st_size
    if as_json:
        print_json({"file": str(path), "size_bytes": after, **asdict(report)})
        return
    lost = f", {report.lost} of them too small for FP16 and now 0" if report.lost else ""
    click.echo(
        f"{path}: {report.tensors} tensors in FP16, magnitudes {report.smallest:.2g} to "
        f"{report.largest:.2g}{lost}; {before / 1e6:.2f} -> {after / 1e6:.2f} MB"
    )
