"""deploy-tools demo: the whole pipeline on the embedded default."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import click

from deploy_tools.cli.common import PathType, output_options
from deploy_tools.cli.run import run_and_show

RECIPE = "demo.toml"


@click.command("demo")
@click.option(
    "-o",
    "--out",
    type=PathType,
    default="demo-output",
    show_default=True,
    metavar="DIR",
    help="Folder for what is made.",
)
@click.option(
    "--data",
    type=PathType,
    metavar="DIR",
    help="Folder with the four Fashion-MNIST files; found or fetched where left out.",
)
@output_options
def command(out: Path, data: Path | None, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Run the whole pipeline on a ResNet-20 trained on Fashion-MNIST.

    Under two minutes on two cores: fold, export, calibrate, quantize, measure on all 10,000
    test images, report.

    \b
    Example:
      deploy-tools demo -o demo-output
    """  # fmt: skip
    recipe = Path(str(resources.files("deploy_tools") / "assets" / RECIPE))
    changes = [f"data.root={data.absolute()}"] if data else []
    run_and_show(recipe, changes, out, (), False, as_json, quiet, verbose)
