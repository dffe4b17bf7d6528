"""A search on a real model, through the pipeline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from deploy_tools.artifacts import ArtifactDirectory
from deploy_tools.data.source import ImageSource
from deploy_tools.errors import UserError
from deploy_tools.pipeline.int8_settings import settings_of
from deploy_tools.pipeline.searching import SearchConfig, _recipe_text, _Searching
from deploy_tools.pipeline.stages import StageRunner
from deploy_tools.pipeline.variants import planned_variants
from deploy_tools.recipe import (
    BudgetTable,
    DataTable,
    ModelTable,
    Recipe,
    VariantTable,
    load_recipe,
)
from deploy_tools.search.budget import Budget
from deploy_tools.search.candidates import corrected, plain
from deploy_tools.search.found import Tried

RUN = Recipe(ModelTable("resnet20-cifar", "weights"), DataTable("fashion-mnist"))
RECIPE = """
[model]
arch = "resnet20-cifar"
checkpoint = "{checkpoint}"

[data]
source = "fashion-mnist"
calibration = {{ split = "train", images = 32 }}
evaluation = {{ split = "test", images = 40 }}
"""


class Unreadable:
    """The evaluation images: their hashes are known, and nobody may look at one."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self.name, self.split, self.classes = source.name, source.split, source.classes
        self.labels = source.labels

    def __len__(self) -> int:
        return len(self._source)

    def load(self, index: int) -> NDArray[np.uint8]:
        raise AssertionError("an evaluation image was read")

    def image_id(self, index: int) -> str:
        return self._source.image_id(index)

    def content_hash(self, index: int) -> str:
        return self._source.content_hash(index)


@pytest.fixture
def recipe(tmp_path: Path, demo_checkpoint: Path) -> Recipe:
    path = tmp_path / "r.toml"
    path.write_text(RECIPE.format(checkpoint=demo_checkpoint))
    return load_recipe(path)


def test_nothing_that_chooses_reads_an_evaluation_image(recipe: Recipe, tmp_path: Path) -> None:
    config = SearchConfig(Budget(max_drop_pp=1.0), images=60, ranked=8)
    with ArtifactDirectory(tmp_path / "out") as directory:
        work = _Searching(recipe, StageRunner(directory), "", config)
        real = work.evaluation
        work.__dict__["evaluation"] = Unreadable(real)
        base = VariantTable("int8", "static", "ort-cpu", ranges="auto")
        assert plain(base).ranges == "auto"
        judged = work.evaluate(plain(base))
        assert judged.images == 60
        assert 0.5 < judged.agreement <= 1
        steps = work.steps(plain(base))
        assert {step.kind for step in steps} == {"layer", "branch"}
        assert all(0 < step.noise < 1 for step in steps)
        with pytest.raises(AssertionError, match="was read"):
            work.final(plain(base))
        ranked, judges = work.spare
        assert (len(ranked), len(judges)) == (8, 60)
        hashes = [{work.calibration.content_hash(i) for i in part} for part in (ranked, judges)]
        used = set(work.selection.sha256) | {real.content_hash(i) for i in range(len(real))}
        assert not hashes[0] & hashes[1]
        assert not (hashes[0] | hashes[1]) & used


def test_targets_of_other_machines_are_refused() -> None:
    for target in ("tensorrt", "tensorrt-rtx"):
        with pytest.raises(UserError, match="another"):
            SearchConfig(Budget(1.0), target)
    with pytest.raises(UserError, match="at least"):
        SearchConfig(Budget(1.0), images=3)


def test_the_found_recipe_keeps_the_recipes_own_budget() -> None:
    recipe = replace(RUN, budget=BudgetTable(0.5))
    chosen = Tried(VariantTable("int8", "static", "ort-cpu"), "plain", None)
    for budget, kept in ((Budget(min_agreement=0.99), 0.5), (Budget(max_drop_pp=0.1), 0.1)):
        text = _recipe_text(recipe, chosen, SearchConfig(budget))
        assert f"max_drop_pp = {kept}" in text


def test_corrections_reach_the_pipeline_and_plain_has_none() -> None:
    base = VariantTable("int8", "static", "ort-cpu")
    found = {}
    for name, table in (("plain", plain(base)), ("corrected", corrected(base))):
        recipe = replace(RUN, variant=(table,))
        settings = settings_of(planned_variants(recipe)[-1])
        found[name] = (
            settings.ranges, settings.equalize, settings.rounding, settings.bias_correction
        )  # fmt: skip
    assert found["plain"] == ("mse", False, "nearest", False)
    assert found["corrected"] == ("auto", True, "gptq", None)
