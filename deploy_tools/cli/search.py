"""deploy-tools search: the fastest INT8 file that keeps an accuracy budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy_tools.cli.common import (
    PathType,
    command_line,
    out_option,
    output_options,
    print_json,
    progress_bar,
)
from deploy_tools.cli.show import print_table
from deploy_tools.errors import BudgetError
from deploy_tools.quantization.targets import TARGETS
from deploy_tools.recipe import ENGINE_TARGETS, load_recipe
from deploy_tools.sensitivity.workers import ENGINES

if TYPE_CHECKING:
    from deploy_tools.pipeline.searching import SearchConfig, SearchResult
    from deploy_tools.search.budget import Budget
    from deploy_tools.search.found import Tried

_TARGETS = [name for name in TARGETS if name not in ENGINE_TARGETS]


@click.command("search")
@click.argument("recipe", type=PathType)
@click.option("--min-agreement", metavar="PERCENT", help="Images with FP32's class, such as 99.5.")
@click.option("--max-drop", metavar="PP", help="Accuracy lost, such as 0.1pp.")
@click.option("--target", type=click.Choice(_TARGETS), default="ort-cpu", show_default=True, help="Where the file will run, and where it is measured.")  # fmt: skip
@click.option("--images", type=click.IntRange(20), default=2000, show_default=True, help="Held-out images that judge.")  # fmt: skip
@click.option("--judge-split", default="", metavar="SPLIT", help="Where they are; default: the calibration images' split.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Of the offline scenario; single images are timed too.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(3), default=12, show_default=True, help="Interleaved rounds of timing.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(0.01), default=0.25, show_default=True, help="Of one file in one round.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes that rank the layers.")  # fmt: skip
@click.option("--engine", type=click.Choice(ENGINES), default="processes", show_default=True, help="Where they run.")  # fmt: skip
@click.option("--data", type=PathType, metavar="DIR", help="Where the images are (data.root).")
@click.option("--checkpoint", type=PathType, metavar="FILE", help="The weights (model.checkpoint).")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Replace a value of the recipe.")  # fmt: skip
@out_option()
@output_options
def command(
    recipe: Path,
    min_agreement: str | None,
    max_drop: str | None,
    target: str,
    images: int,
    judge_split: str,
    batch: int,
    rounds: int,
    seconds: float,
    workers: int,
    engine: str,
    data: Path | None,
    checkpoint: Path | None,
    changes: tuple[str, ...],
    out: Path,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Find the fastest INT8 file of RECIPE's model that keeps a budget, and a recipe that makes it.

    Corrections and range methods come first, since they cost no speed; then residual branches and
    layers in float, as few as keep the budget. The budget is judged on images that neither
    calibrate nor evaluate; the evaluation images see the choice once, at the end. A model that
    knows its training images by heart keeps any budget on them: give such a one --judge-split with
    a split it never saw, and let the recipe evaluate on another or on a part of it. Writes
    search.json, with all that was tried, and recipe.toml. A search that was stopped goes on where
    it was; for that OUT keeps a float and an INT8 file of each assignment, gigabytes for a large
    model. Exit 4 where nothing keeps the budget, or the choice misses it on the evaluation images.

    \b
    Example:
      deploy-tools search recipes/cifar10-resnet20.toml --data data/cifar10 \\
          --checkpoint resnet20-12fca82f.th --min-agreement 99.4 \\
          --judge-split test --set data.evaluation.images=5000 --target openvino -o found
    """  # fmt: skip
    from benchmarks.speed import SpeedConfig
    from deploy_tools.pipeline.searching import SearchConfig, search_recipe
    from deploy_tools.search.budget import Budget, parse_agreement, parse_drop
    from deploy_tools.sensitivity.run import Work

    budget = Budget(
        None if max_drop is None else parse_drop(max_drop),
        None if min_agreement is None else parse_agreement(min_agreement),
    )
    speed = SpeedConfig(batch=batch, rounds=rounds, seconds_per_round=seconds)
    work = Work(engine, workers)
    config = SearchConfig(budget, target, images, judge_split=judge_split, speed=speed, work=work)
    named = [("data.root", data), ("model.checkpoint", checkpoint)]
    paths = [f"{key}={path.absolute()}" for key, path in named if path is not None]
    loaded = load_recipe(recipe, [*paths, *changes])

    def tell(tried: Tried) -> None:
        if not quiet:
            click.echo(f"  {_line(tried, budget)}", err=True)

    with progress_bar(quiet) as progress:
        result = search_recipe(loaded, out, config, command_line(), progress, tell)
    if as_json:
        print_json(result.report)
    else:
        _show(result, out)
    _raise_outcome(result, config, out)


def _line(tried: Tried, budget: Budget) -> str:
    """Return one line about what was tried."""
    if tried.judged is None:
        return f"{tried.why}: {tried.problem}"
    kept = "kept" if budget.met(tried.judged) else "missed"
    return f"{tried.why}: {budget.said(tried.judged)}, SQNR {tried.judged.sqnr_db:.1f} dB: {kept}"


def _show(result: SearchResult, out: Path) -> None:
    from deploy_tools.search.found import assignment_dict

    found = result.found
    click.echo(f"{len(found.tried)} assignments tried; {found.stopped}.")
    if found.chosen is None:
        return
    rows = []
    for tried, speed in found.timed:
        floats = [*tried.assignment.exclude, *tried.assignment.float_branches]
        estimate, low, high = speed.overall()
        mark = "chosen" if tried == found.chosen else ""
        rows.append([tried.why, str(len(floats)), f"{estimate:.3f} [{low:.3f}, {high:.3f}]", mark])
    print_table(["timed", "in float", f"speed over {found.timed[0][0].why} [95 %]", ""], rows)
    for key, value in assignment_dict(found.chosen.assignment).items():
        click.echo(f"  {key} = {value}")
    click.echo(f"On the evaluation images: {result.accuracy}")
    click.echo(f"Recipe: {out / 'recipe.toml'} (and search.json)")


def _raise_outcome(result: SearchResult, config: SearchConfig, out: Path) -> None:
    """Raise BudgetError (4) where nothing keeps the budget, or the choice does not in the end."""
    found, budget = result.found, config.budget
    if found.chosen is None:
        judged = found.nearest.judged
        if judged is None:
            raise BudgetError("no assignment could be judged.")
        raise BudgetError(
            f"no assignment keeps the budget; the nearest ({found.nearest.why}) misses it by "
            f"{budget.missing_pp(judged):.2f} points: {budget.said(judged)}.",
            f"All that was tried is in {out / 'search.json'}.",
        )
    if result.final is not None and not budget.met(result.final):
        raise BudgetError(
            "the choice keeps the budget on the images that judged and misses it on the "
            f"evaluation images by {budget.missing_pp(result.final):.2f} points: "
            f"{budget.said(result.final)}.",
            "Judge with more --images, or ask for more."
            if config.judge_split
            else "The model knows its training images: give --judge-split a split it never saw.",
        )
