"""One run of a recipe: what it loads, and the files that it makes of the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy import Accuracy
from benchmarks.speed import SpeedRun
from calibration.select import SelectConfig, Selection, select_images
from deploy_tools.artifacts import Artifact
from deploy_tools.data import open_source
from deploy_tools.data.check import check_classes, refuse_overlap
from deploy_tools.data.source import ImageSource, SubsetSource
from deploy_tools.data.spec import InputSpec
from deploy_tools.data.splits import stratified_choice
from deploy_tools.errors import DeployToolsError, MissingDependencyError, OutputError
from deploy_tools.pipeline.engines import build_variant, cast_variant
from deploy_tools.pipeline.images import CalibrationImages
from deploy_tools.pipeline.model import FUSED, LoadedModel, fold_model, load_model, model_parents
from deploy_tools.pipeline.pixels import pixels_variant
from deploy_tools.pipeline.qat import qat_table, training_images
from deploy_tools.pipeline.quantize import quantize_variant
from deploy_tools.pipeline.stages import StageRunner
from deploy_tools.pipeline.variants import Variant, planned_variants
from deploy_tools.recipe import Recipe

FP32_FILE = "fp32.onnx"


@dataclass
class Outcome:
    """What became of one variant: its files, and why a part of it is missing.

    artifact: its ONNX file, None for the torch module. engine: what was built from it.
    """

    variant: Variant
    artifact: Artifact | None = None
    engine: Artifact | None = None
    status: dict[str, dict[str, str]] = field(default_factory=dict)
    result: Accuracy | None = None
    runs: list[SpeedRun] = field(default_factory=list)
    session: dict[str, Any] = field(default_factory=dict)
    peak_rss_bytes: int | None = None

    @property
    def loaded(self) -> Artifact | None:
        """The file that is run: the engine, or the ONNX file where that stands in for it."""
        wants_engine = self.variant.engine and not self.variant.simulated
        return self.engine if wants_engine else self.artifact

    @property
    def can_run(self) -> bool:
        """Whether there is something to run."""
        return self.variant.runtime == "torch" or self.loaded is not None

    def ok(self, part: str) -> bool:
        """Whether this part ("build", "accuracy", "speed") is done."""
        return self.status.get(part, {}).get("status") == "ok"

    def say(self, part: str, status: str, reason: str = "") -> None:
        """Record a part's status."""
        self.status[part] = {"status": status, "reason": reason}


class Run:
    """One run of a recipe in one artifact directory; its stages are its methods, in order."""

    def __init__(self, recipe: Recipe, runner: StageRunner, command: str) -> None:
        self.recipe = recipe
        self.runner = runner
        self.command = command
        self.outcomes = [Outcome(variant) for variant in planned_variants(recipe)]

    @cached_property
    def evaluation(self) -> ImageSource:
        """The images that judge; a part of the split, stratified, where the recipe says so."""
        table = self.recipe.data.evaluation
        source = self._source(table.split)
        if table.images == "all":
            return source
        chosen = stratified_choice(source.labels, int(table.images), seed=0)
        return SubsetSource(source, chosen.tolist(), table.split)

    @cached_property
    def calibration(self) -> ImageSource:
        """The split that calibration images are chosen from."""
        return self._source(self.recipe.data.calibration.split)

    @cached_property
    def loaded(self) -> LoadedModel:
        """The torch module; built only when a stage needs it."""
        loaded = load_model(self.recipe.model, self.recipe.input, self.evaluation.classes)
        check_classes(self.evaluation, loaded.classes)
        return loaded

    @cached_property
    def spec(self) -> InputSpec:
        """The input spec, read from the exported file."""
        from deploy_tools.onnx_files import input_spec_of, load_onnx

        path = self.runner.directory.path(FP32_FILE)
        return input_spec_of(load_onnx(path), path)

    def export(self) -> Artifact:
        """Checkpoint -> folded module -> FP32 ONNX."""
        model = self.recipe.model
        settings = {
            "arch": model.arch,
            "num_classes": model.num_classes,
            "input": {
                k: list(v) if isinstance(v, tuple) else v
                for k, v in self.recipe.input.given().items()
            },
            "classes": list(self.evaluation.classes),
        }
        parents = model_parents(model)
        fused = self.runner.run("fuse", "fused", "fused.safetensors", settings, parents, self._fuse)
        return self.runner.run(
            "export",
            "fp32.onnx",
            FP32_FILE,
            settings,
            {"fused": fused.sha256} | parents,
            self._export,
        )

    def select(self) -> Selection:
        """Choose the calibration images, none of which may be an evaluation image."""
        table = self.recipe.data.calibration
        config = SelectConfig(
            table.images, table.choose, table.seed, Path(table.list) if table.list else None
        )
        selection = select_images(self.calibration, config)
        self._refuse_overlap(selection.indices)

        def save(path: Path) -> None:
            selection.save(path.parent)

        self.runner.run(
            "select", "selection", "calibration/selection.json",
            {"choose": table.choose, "images": table.images, "seed": table.seed},
            {"images": selection.content_hash}, save,
        )  # fmt: skip
        return selection

    def make_variants(self, fp32: Artifact) -> None:
        """Write the file of every variant; one that fails does not stop the others."""
        selection: Selection | None = None
        for outcome in self.outcomes:
            variant = outcome.variant
            if variant.method == "none" and not variant.engine and not self._takes_pixels(variant):
                outcome.artifact = None if variant.runtime == "torch" else fp32
                outcome.say("build", "ok")
                continue
            if variant.method in ("static", "qat") and selection is None:
                selection = self.select()
            try:
                self._make(outcome, fp32, selection)
                outcome.say("build", "ok")
            except MissingDependencyError as error:
                outcome.say("build", "skipped", str(error))
            except OutputError:
                raise
            except DeployToolsError as error:
                outcome.say("build", "failed", str(error))

    def _make(self, outcome: Outcome, fp32: Artifact, selection: Selection | None) -> None:
        variant = outcome.variant
        if variant.method == "qat" and selection is not None:
            images = CalibrationImages(self.calibration, selection, lambda: self.spec)
            self._refuse_overlap(training_images(qat_table(variant), images))
        if variant.method == "none" and not variant.engine:
            outcome.artifact = fp32
        elif variant.method == "none":
            outcome.artifact = cast_variant(self.runner, variant, fp32)
        else:
            outcome.artifact = quantize_variant(
                self.runner, variant, fp32, selection, self.calibration, lambda: self.spec
            )
        if self._takes_pixels(variant):
            outcome.artifact = pixels_variant(self.runner, variant, outcome.artifact)
        if variant.engine:
            outcome.engine = build_variant(self.runner, variant, outcome.artifact)

    def spec_of(self, variant: Variant) -> InputSpec:
        """The input spec of a variant's file."""
        return self.spec.with_pixels() if self._takes_pixels(variant) else self.spec

    def _takes_pixels(self, variant: Variant) -> bool:
        """Whether it takes pixels; the two references, which have no table, never do."""
        return self.recipe.input.takes_pixels and variant.table is not None

    def _refuse_overlap(self, indices: Sequence[int]) -> None:
        refuse_overlap(self.calibration, indices, self.evaluation, range(len(self.evaluation)))

    def _source(self, split: str) -> ImageSource:
        data = self.recipe.data
        return open_source(data.source, Path(data.root) if data.root else None, split)

    @cached_property
    def _folded(self) -> tuple[Any, Any]:
        """The folded module and its FoldReport (None where the checkpoint is folded already)."""
        return fold_model(self.loaded, self._real_inputs())

    def _real_inputs(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """A few calibration images for the proof of the fold."""
        from deploy_tools.data.source import batches

        return next(batches(self.calibration, self.loaded.spec, min(4, len(self.calibration))))[0]

    def _fuse(self, path: Path) -> dict[str, Any]:
        module, report = self._folded
        from deploy_tools.models.checkpoint import save_checkpoint

        metadata = {
            FUSED: "true",
            "arch": self.loaded.arch,
            "num_classes": str(self.loaded.classes),
            "input_spec": self.loaded.spec.to_json(),
        }
        save_checkpoint(module.state_dict(), path, metadata)
        return {} if report is None else asdict(report)

    def _export(self, path: Path) -> dict[str, Any]:
        module, _ = self._folded
        from deploy_tools.export import onnx_from_module

        report = onnx_from_module(module, self.loaded.spec, path, metadata=self.loaded.metadata)
        return {"max_abs": {str(k): v for k, v in report.max_abs.items()}, "nodes": report.nodes}
