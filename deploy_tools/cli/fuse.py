"""deploy-tools fuse: fold BatchNorm into the layers before it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from deploy_tools.artifacts import ArtifactDirectory
from deploy_tools.cli.common import (
    input_options,
    model_options,
    out_option,
    output_options,
    print_json,
)  # fmt: skip
from deploy_tools.cli.model import input_table
from deploy_tools.errors import UserError, require
from deploy_tools.recipe import ModelTable


@click.command("fuse")
@model_options
@input_options
@out_option()
@output_options
def command(
    arch: str,
    checkpoint: Path | None,
    weights: str,
    num_classes: int | None,
    out: Path,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **given: str | int | None,
) -> None:
    """Fold every BatchNorm that follows a convolution or a Linear; write fused.safetensors.

    The fold is proved on the module: its largest difference to the original, in float64 and
    float32, is printed. A BatchNorm that cannot be folded is left and named with the reason.

    \b
    Example:
      deploy-tools fuse --arch resnet18 --checkpoint resnet18.pth --size 224 \\
          --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 -o out
    """
    require("torch", "torch", "fuse")
    from deploy_tools.models.checkpoint import save_checkpoint
    from deploy_tools.pipeline.model import FUSED, fold_model, load_model, model_parents

    table = ModelTable(arch, str(checkpoint or ""), weights, num_classes)
    loaded = load_model(table, input_table(given))
    module, report = fold_model(loaded)
    if report is None:
        raise UserError(f"{checkpoint} is folded already.")
    metadata = {
        FUSED: "true", "arch": arch, "input_spec": loaded.spec.to_json(),
        "num_classes": str(loaded.classes),
    }  # fmt: skip
    with ArtifactDirectory(out) as directory:
        save_checkpoint(module.state_dict(), out / "fused.safetensors", metadata)
        directory.add(
            "fused", "fused.safetensors", "fuse", {"arch": arch}, model_parents(table),
            asdict(report),
        )  # fmt: skip
    if as_json:
        print_json({"file": str(out / "fused.safetensors"), **asdict(report)})
    else:
        click.echo(report)
        click.echo(f"{out / 'fused.safetensors'} written.")
