"""A recipe from the checkpoint to the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy_tools.artifacts import ArtifactDirectory, write_text
from deploy_tools.pipeline.making import Run
from deploy_tools.pipeline.measure import measure
from deploy_tools.pipeline.reporting import report_of
from deploy_tools.pipeline.stages import Progress, StageRunner
from deploy_tools.pipeline.variants import BASELINE
from deploy_tools.recipe import Recipe, lock_text


@dataclass(frozen=True)
class RunResult:
    """report: the report as written to report.json. missed: ids of variants over the budget.

    failed: ids of variants with a failed part. made, kept: names of artifacts.
    """

    report: dict[str, Any]
    missed: tuple[str, ...]
    failed: tuple[str, ...]
    made: tuple[str, ...]
    kept: tuple[str, ...]


def run_recipe(
    recipe: Recipe,
    out: Path,
    command: str,
    progress: Progress | None = None,
    force: Sequence[str] = (),
    dry: bool = False,
) -> RunResult:
    """Run `recipe` in the folder `out`; what is there already and still true is kept.

    command: what the user typed, for the report. The recipe as it was run is
    kept as recipe.lock.toml. Raises the errors of the stages; a variant that fails alone does not
    stop the others and is named in the result.
    """
    with ArtifactDirectory(out) as directory:
        runner = StageRunner(directory, force, dry, progress)
        run = Run(recipe, runner, command)
        fp32 = run.export()
        run.make_variants(fp32)
        measure(run, fp32)
        if dry:
            return RunResult({}, (), (), tuple(runner.made), tuple(runner.kept))
        write_text(directory.path("recipe.lock.toml"), lock_text(recipe))
        directory.keep_only([*runner.made, *runner.kept])
        report = report_of(run)
        missed = _over_budget(run)
        failed = tuple(
            o.variant.id
            for o in run.outcomes
            if any(s["status"] == "failed" for s in o.status.values())
        )
        return RunResult(report, missed, failed, tuple(runner.made), tuple(runner.kept))


def _over_budget(run: Run) -> tuple[str, ...]:
    budget = run.recipe.budget.max_drop_pp
    if budget is None:
        return ()
    return tuple(
        outcome.variant.id
        for outcome in run.outcomes
        if outcome.result is not None
        and outcome.variant.id != BASELINE
        and outcome.result.drop_pp > budget
    )
