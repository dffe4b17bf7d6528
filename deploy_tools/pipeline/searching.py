"""A search on a recipe: assignments made, judged and timed as a run would; all of it kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy import Accuracy, accuracy_from_predictions
from benchmarks.environment import describe_environment
from benchmarks.predictions import Predictions, predictions_from_images
from benchmarks.speed import SpeedConfig, SpeedRun, measure_speed, save_samples
from calibration.collect import CalibrateConfig
from calibration.select import Selection
from calibration.table import RangeTable
from deploy_tools.artifacts import (
    Artifact,
    ArtifactDirectory,
    sha256_of_value,
    write_json,
    write_text,
)
from deploy_tools.data.source import ImageSource, SubsetSource, batches, source_hash
from deploy_tools.errors import UserError
from deploy_tools.onnx_files import load_onnx
from deploy_tools.pipeline.correct import corrected_weights
from deploy_tools.pipeline.images import CalibrationImages
from deploy_tools.pipeline.int8_settings import settings_of
from deploy_tools.pipeline.making import Run
from deploy_tools.pipeline.quantize import quantize_variant
from deploy_tools.pipeline.ranges import calibrated_ranges
from deploy_tools.pipeline.stages import Progress, StageRunner
from deploy_tools.pipeline.variants import BASELINE, Variant, planned_variants
from deploy_tools.quantization.prepare import prepared
from deploy_tools.quantization.targets import target_named
from deploy_tools.recipe import ENGINE_TARGETS, BudgetTable, Recipe, VariantTable, lock_text
from deploy_tools.runtimes import RuntimeConfig, Session, open_session
from deploy_tools.search.budget import Budget, Judged
from deploy_tools.search.candidates import Step
from deploy_tools.search.found import Found, Speed, Tried, assignment_dict
from deploy_tools.search.search import search_assignments
from deploy_tools.sensitivity.costs import costs_of
from deploy_tools.sensitivity.images import spare_images
from deploy_tools.sensitivity.layers import SensitivityConfig, sensitivity_from_onnx
from deploy_tools.sensitivity.run import Work

_BATCH = 64
_FEWEST = 20
"""Fewer judging images than this tell nothing."""


@dataclass(frozen=True)
class SearchConfig:
    """How to search.

    budget: what must be kept. target: of the file. images: held-out images that judge; fewer
    where their split has no more. ranked: held-out images that rank the layers; others
    than those. judge_split: the split of both, "" for that of the calibration images, which the
    model was trained on. speed: how assignments are timed. work: where the ranking runs.
    """

    budget: Budget
    target: str = "ort-cpu"
    images: int = 2000
    ranked: int = 64
    judge_split: str = ""
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    work: Work = field(default_factory=Work)

    def __post_init__(self) -> None:
        if self.target in ENGINE_TARGETS or not target_named(self.target).runtime:
            raise UserError(
                f'search measures on this machine, and target "{self.target}" is for another.',
                "Use ort-cpu or openvino.",
            )
        if self.images < _FEWEST or self.ranked < 1:
            raise UserError(f"search needs at least {_FEWEST} images to judge on.")


@dataclass(frozen=True)
class SearchResult:
    """What a search came to. accuracy: of the chosen file on the evaluation images, None where
    nothing was chosen. report: what search.json holds."""

    found: Found
    accuracy: Accuracy | None
    report: dict[str, Any]

    @property
    def final(self) -> Judged | None:
        """The chosen file on the evaluation images, as a budget judges it."""
        return _judged(self.accuracy) if self.accuracy else None


def search_recipe(
    recipe: Recipe,
    out: Path,
    config: SearchConfig,
    command: str = "",
    progress: Progress | None = None,
    tell: Callable[[Tried], None] | None = None,
) -> SearchResult:
    """Search on a recipe's model, data and calibration; write search.json and recipe.toml.

    Of the recipe's variants the first static one of the target is where the search starts; its
    exclude, per_channel and the like stay. All that is made stays in `out`, and a search that was
    stopped goes on from there. tell: hears of everything tried.
    """
    with ArtifactDirectory(out) as directory:
        runner = StageRunner(directory, progress=progress)
        work = _Searching(replace(recipe, variant=()), runner, command, config)
        base = _base(recipe, config.target)
        work.require_here(base)
        work.require_judges()
        directory.path("recipe.toml").unlink(missing_ok=True)  # of a looser search in this folder
        found = search_assignments(base, config.budget, work.evaluate, work.time, work.steps, tell)
        accuracy = work.final(found.chosen.assignment) if found.chosen else None
        report = work.report(found, accuracy, config.budget)
        write_json(directory.path("search.json"), report)
        if found.chosen is not None:
            write_text(directory.path("recipe.toml"), _recipe_text(recipe, found.chosen, config))
        return SearchResult(found, accuracy, report)


def _base(recipe: Recipe, target: str) -> VariantTable:
    for table in recipe.variant:
        if table.method == "static" and (table.target or "ort-cpu") == target:
            return replace(table, id="")
    return VariantTable("int8", "static", target)


def _recipe_text(recipe: Recipe, chosen: Tried, config: SearchConfig) -> str:
    asked = config.budget.max_drop_pp
    budget = recipe.budget if asked is None else BudgetTable(asked)
    said = config.budget.said(chosen.judged) if chosen.judged else ""
    split = recipe.data.calibration.split
    head = f"# Found by deploy-tools search: {said}, on images of {config.judge_split or split}.\n"
    return head + lock_text(replace(recipe, variant=(chosen.assignment,), budget=budget))


def _judged(found: Accuracy) -> Judged:
    return Judged(
        found.images, found.agreement, found.agreement_ci95,
        found.drop_pp, found.drop_ci95_pp, found.logit_sqnr_db,
    )  # fmt: skip


class _Searching(Run):
    """A run without variants of its own; it makes the assignments that a search asks for."""

    def __init__(
        self, recipe: Recipe, runner: StageRunner, command: str, config: SearchConfig
    ) -> None:
        super().__init__(recipe, runner, command)
        self.config = config
        self._speeds: list[SpeedRun] = []
        self._hashes: dict[int, tuple[str, ImageSource]] = {}

    def require_here(self, base: VariantTable) -> None:
        """Refuse a target whose kernels this machine does not have."""
        if self._variant(base).simulated:
            raise UserError(
                f'search measures speed, and this machine has no kernels for target "{base.target}".',
                "Search on a machine of that kind.",
            )

    def require_judges(self) -> None:
        """Refuse a split that is not there or has too few images before anything is made."""
        _ = self.spare

    @cached_property
    def fp32(self) -> Artifact:
        """The exported model."""
        return self.export()

    @cached_property
    def selection(self) -> Selection:
        """The calibration images."""
        return self.select()

    @cached_property
    def judging(self) -> ImageSource:
        """The split whose images rank and judge."""
        return self._source(self.config.judge_split or self.recipe.data.calibration.split)

    @cached_property
    def spare(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Images that rank layers, and that judge, of `judging`: (ranked, judge).

        None of them is a calibration or an evaluation image, by content.
        """
        used = set(self.selection.sha256)
        used |= {self.evaluation.content_hash(i) for i in range(len(self.evaluation))}
        wanted = self.config.ranked + self.config.images
        found = spare_images(self.judging, wanted, used)
        ranked = min(self.config.ranked, len(found) // 4)
        if len(found) - ranked < _FEWEST:
            raise UserError(
                f"{self.judging.name} {self.judging.split} has {len(found)} images that "
                "neither calibrate nor evaluate; search judges on those.",
                "Calibrate or evaluate with fewer images of it.",
            )
        return found[:ranked], found[ranked : ranked + self.config.images]

    @cached_property
    def judges(self) -> ImageSource:
        """The images that judge assignments."""
        return SubsetSource(self.judging, self.spare[1], self.judging.split)

    def evaluate(self, assignment: VariantTable) -> Judged:
        """Make an assignment and compare it with FP32 on the judging images."""
        variant, artifact = self._made(assignment)
        return _judged(self._compared(variant, artifact, self.judges, "judge"))

    def final(self, assignment: VariantTable) -> Accuracy:
        """Compare an assignment with FP32 on the evaluation images: to report, not to choose."""
        return self._compared(*self._made(assignment), self.evaluation, "evaluation")

    def time(self, assignments: Sequence[VariantTable]) -> list[Speed]:
        """Time assignments side by side with FP32; the first is what the ratios are over."""
        made = [self._made(assignment) for assignment in assignments]
        sessions: dict[str, Session] = {}
        try:
            for variant, artifact in made:
                sessions[variant.id] = self._opened(variant, artifact)
            sessions[BASELINE] = self._opened(self._baseline, self.fp32)
            first = made[0][0].id
            self._speeds = measure_speed(
                sessions, self._images, first, self.config.speed, self.runner.progress
            )
        finally:
            for session in sessions.values():
                session.close()
        save_samples(self._speeds, self.runner.directory.path("search"))
        return [Speed(dict(self._ratios(variant.id))) for variant, _ in made]

    def steps(self, assignment: VariantTable) -> list[Step]:
        """Return what could stay in float, with its noise: each item alone in INT8.

        Measured on the float file before GPTQ: on the rounded one weights would look free.
        """
        settings = settings_of(self._variant(assignment))
        images = CalibrationImages(self.calibration, self.selection, lambda: self.spec)
        _, model = corrected_weights(self.runner, self.fp32, settings, images)
        ranges = calibrated_ranges(self.runner, model, images, "mse", CalibrateConfig())
        folder = self.runner.directory
        path = folder.path(model.file)
        ranked = SubsetSource(self.judging, self.spare[0], self.judging.split)

        def measure(target: Path) -> None:
            found = sensitivity_from_onnx(
                path,
                RangeTable.load(folder.path(ranges.file)),
                lambda: (inputs for inputs, _ in batches(ranked, self.spec, _BATCH)),
                SensitivityConfig(settings.static, leavable=True, work=self.config.work),
                self.runner.progress,
                len(ranked),
            )
            costs = costs_of(prepared(load_onnx(path)), found.items, self.spec.shape(1))
            steps = [
                Step(i.name, i.kind, 10 ** (-found.sqnr_db(i.name) / 10), costs[i.name])
                for i in found.items
            ]
            write_json(target, [asdict(step) for step in steps])

        parents = {
            "model": model.sha256, "ranges": ranges.sha256, "images": self._hash(ranked),
        }  # fmt: skip
        plain = {
            k: list(v) if isinstance(v, tuple) else v for k, v in asdict(settings.static).items()
        }
        kept = self.runner.run("sensitivity", "steps", "search/steps.json", plain, parents, measure)
        return [Step(**step) for step in json.loads(folder.path(kept.file).read_text("utf-8"))]

    def report(self, found: Found, accuracy: Accuracy | None, budget: Budget) -> dict[str, Any]:
        """Return what search.json holds; met: by the choice, on the evaluation images too."""
        chosen = found.chosen
        judged_on = {
            "split": self.judges.split,
            "images": len(self.judges),
            "sha256": self._hash(self.judges),
        }
        met = accuracy is not None and budget.met(_judged(accuracy))
        return found.to_dict(budget) | {
            "met": met,
            "schema": 1,
            "command": self.command,
            "environment": describe_environment(),
            "target": self.config.target,
            "judged_on": judged_on,
            "file": self._made(chosen.assignment)[1].file if chosen else None,
            "speed": [run.to_dict() | {"variant": run.variant} for run in self._speeds],
            "evaluation": accuracy.to_dict() | {"split": self.evaluation.split, "met": met}
            if accuracy
            else None,
        }

    @cached_property
    def _baseline(self) -> Variant:
        return next(v for v in planned_variants(self.recipe) if v.id == BASELINE)

    def _variant(self, assignment: VariantTable) -> Variant:
        name = f"search-{sha256_of_value(assignment_dict(assignment))[:10]}"
        named = replace(self.recipe, variant=(replace(assignment, id=name),))
        return replace(planned_variants(named)[-1], file=f"search/{name}.onnx")

    def _made(self, assignment: VariantTable) -> tuple[Variant, Artifact]:
        """Return the assignment's file; made once, here or in an earlier search."""
        variant = self._variant(assignment)
        artifact = quantize_variant(
            self.runner, variant, self.fp32, self.selection, self.calibration, lambda: self.spec
        )
        return variant, artifact

    def _compared(
        self, variant: Variant, artifact: Artifact, images: ImageSource, name: str
    ) -> Accuracy:
        baseline = self._predictions(self._baseline, self.fp32, images, name)
        return accuracy_from_predictions(
            self._predictions(variant, artifact, images, name), baseline
        )

    def _predictions(
        self, variant: Variant, artifact: Artifact, images: ImageSource, name: str
    ) -> Predictions:
        file = f"search/{variant.id}-{name}.npz"

        def make(path: Path) -> None:
            session = self._opened(variant, artifact)
            try:
                predictions_from_images(
                    session, images, self.spec, _BATCH, None, self.runner.progress
                ).save(path)
            finally:
                session.close()

        settings = {"runtime": variant.runtime, "threads": self.recipe.speed.threads}
        parents = {"model": artifact.sha256, "images": self._hash(images)}
        self.runner.run("predict", file, file, settings, parents, make)
        return Predictions.load(self.runner.directory.path(file))

    def _opened(self, variant: Variant, artifact: Artifact) -> Session:
        threads = self.recipe.speed.threads
        path = self.runner.directory.path(artifact.file)
        return open_session(
            path, RuntimeConfig(variant.runtime, threads, variant.runtime_precision)
        )

    def _hash(self, images: ImageSource) -> str:
        """Return the images' content hash, computed once: it reads every file."""
        if id(images) not in self._hashes:
            self._hashes[id(images)] = (source_hash(images), images)
        return self._hashes[id(images)][0]

    def _images(self, count: int) -> NDArray[np.float32]:
        indices = [i % len(self.judges) for i in range(count)]
        return next(batches(self.judges, self.spec, count, indices))[0]

    def _ratios(self, name: str) -> Iterator[tuple[str, tuple[float, float, float]]]:
        for run in self._speeds:
            if run.variant == name:
                ratio = run.speedup
                yield run.scenario, (ratio.estimate, ratio.low, ratio.high)
