"""A small recipe on real images, and one run of it that tests may look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deploy_tools.pipeline import RunResult, run_recipe
from deploy_tools.recipe import Recipe, load_recipe

SMALL = """
[model]
arch = "resnet20-cifar"
checkpoint = "{checkpoint}"

[data]
source = "fashion-mnist"
calibration = {{ split = "train", images = 64 }}
evaluation = {{ split = "test", images = 300 }}

[[variant]]
precision = "int8"
method = "dynamic"

[[variant]]
precision = "int8"
method = "static"
target = "ort-cpu"
ranges = "minmax"
equalize = false
rounding = "nearest"
bias_correction = false

[speed]
batch = 4
rounds = 3
seconds = 0.01
"""


def small_recipe(folder: Path, checkpoint: Path, *changes: str) -> Recipe:
    """The small recipe, with --set changes."""
    path = folder / "small.toml"
    path.write_text(SMALL.format(checkpoint=checkpoint))
    return load_recipe(path, changes)


@pytest.fixture
def recipe_with(tmp_path: Path, demo_checkpoint: Path) -> Callable[..., Recipe]:
    """A function that gives the small recipe with --set changes."""
    return lambda *changes: small_recipe(tmp_path, demo_checkpoint, *changes)


@pytest.fixture(scope="session")
def small_run(
    tmp_path_factory: pytest.TempPathFactory, demo_checkpoint: Path
) -> tuple[Path, RunResult]:
    """The folder and the result of one undisturbed run; copy the folder before changing it."""
    folder = tmp_path_factory.mktemp("small")
    recipe = small_recipe(folder, demo_checkpoint)
    return folder / "out", run_recipe(recipe, folder / "out", "deploy-tools run small.toml")
