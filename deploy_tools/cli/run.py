"""deploy-tools run: a recipe from checkpoint to report."""

from __future__ import annotations

from pathlib import Path

import click

from deploy_tools.cli.common import PathType, command_line, output_options, print_json, progress_bar
from deploy_tools.cli.show import print_artifacts, print_report
from deploy_tools.errors import BudgetError, PartialError
from deploy_tools.pipeline import RunResult, run_recipe
from deploy_tools.recipe import load_recipe


@click.command("run")
@click.argument("recipe", type=PathType)
@click.option(
    "-o",
    "--out",
    type=PathType,
    metavar="DIR",
    help="Folder for what is made. [default: runs/<recipe's name>]",
)
@click.option("--data", type=PathType, metavar="DIR", help="Where the images are (data.root).")
@click.option("--checkpoint", type=PathType, metavar="FILE", help="The weights (model.checkpoint).")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Replace a value of the recipe, such as speed.rounds=20 or variant.0.ranges=mse.",
)
@click.option(
    "--force",
    multiple=True,
    metavar="STAGE",
    help="Make this stage's results again: fuse, export, select, calibrate, quantize, cast, build, predict, speed or memory.",
)
@click.option(
    "--dry-run", is_flag=True, help="Say what would be made and what would be kept; make nothing."
)
@output_options
def command(
    recipe: Path,
    out: Path | None,
    data: Path | None,
    checkpoint: Path | None,
    changes: tuple[str, ...],
    force: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Run RECIPE: fold, export, calibrate, quantize, measure, report.

    A second run makes again only what a change made stale; so does a run after Ctrl-C.

    \b
    Example:
      deploy-tools run recipes/cifar10-resnet20.toml --data data/cifar10 \\
          --checkpoint resnet20-12fca82f.th
    """  # fmt: skip
    named = [("data.root", data), ("model.checkpoint", checkpoint)]
    paths = [f"{key}={path.absolute()}" for key, path in named if path is not None]
    folder = out or Path("runs") / recipe.stem
    run_and_show(recipe, [*paths, *changes], folder, force, dry_run, as_json, quiet, verbose)


def run_and_show(
    recipe: Path,
    changes: list[str],
    out: Path,
    force: tuple[str, ...],
    dry: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Run a recipe, print its table, and raise what its outcome asks for."""
    loaded = load_recipe(recipe, changes)
    with progress_bar(quiet) as progress:
        result = run_recipe(loaded, out, command_line(), progress, force, dry)
    if dry:
        print_artifacts(result, as_json)
        return
    if as_json:
        print_json(result.report)
    else:
        print_report(result.report, out)
        if verbose:
            print_artifacts(result, as_json=False)
    raise_outcome(result, loaded.budget.max_drop_pp)


def raise_outcome(result: RunResult, budget: float | None) -> None:
    """Raise PartialError (9) or BudgetError (4) where the run calls for it."""
    if result.missed:
        raise BudgetError(
            f"over the budget of {budget} percentage points: {', '.join(result.missed)}.",
            "The artifacts are kept; try other ranges or more calibration images.",
        )
    if result.failed:
        reasons = [
            f"{variant['id']}: {part['reason']}"
            for variant in result.report["variants"]
            for part in (variant["build"], variant["accuracy"], variant["speed"])
            if part["status"] == "failed"
        ]
        raise PartialError(f"some variants failed: {'; '.join(reasons)}")
