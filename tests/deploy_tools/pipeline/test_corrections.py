"""The corrections as stages of a run: what they write, keep, share and refuse."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from calibration.select import SelectConfig, select_images
from deploy_tools.artifacts import read_manifest, sha256_of_file
from deploy_tools.data.fashion_mnist import SPEC
from deploy_tools.data.source import ImageSource
from deploy_tools.errors import MissingDependencyError, UserError
from deploy_tools.pipeline import RunResult, correct, run_recipe
from deploy_tools.pipeline.images import CalibrationImages
from deploy_tools.pipeline.making import Run
from deploy_tools.pipeline.qat import training_images
from deploy_tools.recipe import QatTable, Recipe, load_recipe

RecipeWith = Callable[..., Recipe]
TEXT = """
[model]
arch = "resnet20-cifar"
checkpoint = "{checkpoint}"

[data]
source = "fashion-mnist"
calibration = {{ split = "train", images = 64 }}
evaluation = {{ split = "test", images = 300 }}

[[variant]]
precision = "int8"
method = "static"
target = "ort-cpu"

[[variant]]
id = "minmax"
precision = "int8"
method = "static"
target = "ort-cpu"
ranges = "minmax"
bias_correction = false

[[variant]]
precision = "int8"
method = "qat"
target = "ort-cpu"
ranges = "minmax"
bias_correction = false
[variant.qat]
epochs = 1
batch = 16

[speed]
scenarios = []
"""


def recipe_of(folder: Path, checkpoint: Path, *changes: str) -> Recipe:
    path = folder / "corrected.toml"
    path.write_text(TEXT.format(checkpoint=checkpoint))
    return load_recipe(path, changes)


@pytest.fixture(scope="module")
def corrected(
    tmp_path_factory: pytest.TempPathFactory, demo_checkpoint: Path
) -> tuple[Path, RunResult]:
    folder = tmp_path_factory.mktemp("corrected")
    recipe = recipe_of(folder, demo_checkpoint)
    return folder / "out", run_recipe(recipe, folder / "out", "deploy-tools run corrected.toml")


@pytest.fixture
def recipe_with(tmp_path: Path, demo_checkpoint: Path) -> RecipeWith:
    return lambda *changes: recipe_of(tmp_path, demo_checkpoint, *changes)


@pytest.fixture
def copy(corrected: tuple[Path, RunResult], tmp_path: Path) -> Path:
    return Path(shutil.copytree(corrected[0], tmp_path / "out"))


def names_of(made: tuple[str, ...]) -> set[str]:
    return {name.split("-")[0] for name in made}


def test_the_default_corrects_the_weights(corrected: tuple[Path, RunResult]) -> None:
    folder, result = corrected
    entry = {v["id"]: v for v in result.report["variants"]}
    assert all(v["accuracy"]["status"] == "ok" for v in entry.values())
    assert entry["int8-static-ort"]["accuracy"]["logit_sqnr_db"] > 30
    files = {path.name.split("-")[0] for path in (folder / "corrections").glob("*.onnx")}
    assert files == {"equalize", "round", "bias"}
    model = onnx.load(folder / "int8-static-ort.onnx")
    noted = {prop.key: prop.value for prop in model.metadata_props}
    assert noted["deploy_tools.corrections"].startswith("equalize,gptq")
    manifest = read_manifest(folder)
    assert manifest["int8-static-ort.onnx"].parents["ranges"] == next(
        a.sha256 for name, a in manifest.items() if name.startswith("ranges-auto-u8")
    )


def test_variants_share_the_corrections(corrected: tuple[Path, RunResult]) -> None:
    folder, _ = corrected
    for stage in ("equalize", "round"):
        assert len(list((folder / "corrections").glob(f"{stage}-*.onnx"))) == 1


def test_the_report_shows_the_course_of_the_fine_tuning(
    corrected: tuple[Path, RunResult],
) -> None:
    folder, result = corrected
    courses = {v["id"]: v["qat"] for v in result.report["variants"] if "qat" in v}
    (name,) = courses
    assert name.startswith("int8-qat")
    assert [row["epoch"] for row in courses[name]["curve"]] == [0, 1]
    page = (folder / "report.html").read_text("utf-8")
    assert page.count("<h2>Fine-tuning</h2>") == 1
    assert f"<b>{name}</b>: 51 images train, 13 held out" in page
    assert 'id="qat-' in page


def test_the_images_alone_set_their_order(fashion_train: ImageSource) -> None:
    """The stages' keys hold the images' contents: another seed with the same must not matter."""
    ids = tuple(fashion_train.image_id(i) for i in range(30))
    first, second = (
        CalibrationImages(
            fashion_train,
            select_images(fashion_train, SelectConfig(choose="list", list=ids, seed=seed)),
            lambda: SPEC,
        )
        for seed in (0, 1)
    )
    assert np.array_equal(np.concatenate([*first()]), np.concatenate([*second()]))
    assert not np.array_equal(next(iter(first()))[:8], next(iter(first.split()[0]()))[:8])


def test_the_images_to_fine_tune_on(fashion_train: ImageSource) -> None:
    chosen = select_images(fashion_train, SelectConfig(40, "stratified", 0))
    images = CalibrationImages(fashion_train, chosen, lambda: SPEC)
    assert training_images(QatTable(), images) == list(chosen.indices)
    for count in (20, 100):
        assert len(set(training_images(QatTable(images=count), images))) == count
    with pytest.raises(UserError, match=r"60001 images and fashion-mnist train has 60000"):
        training_images(QatTable(images=60001), images)


def test_a_second_run_makes_nothing(copy: Path, recipe_with: RecipeWith) -> None:
    assert run_recipe(recipe_with(), copy, "again").made == ()


@pytest.mark.parametrize(
    ("change", "made", "kept"),
    [
        ("variant.0.equalize=false", {"round", "bias", "int8"}, {"equalize", "fp32.onnx"}),
        ("variant.0.rounding=nearest", {"equalize", "bias"}, {"round"}),
        ("variant.0.bias_correction=true", {"bias", "int8"}, {"equalize", "round", "ranges"}),
        ("variant.2.qat.epochs=2", {"int8"}, {"equalize", "round", "bias"}),
        ("variant.2.qat.images=100", {"int8"}, {"equalize", "round", "bias"}),
        ("data.calibration.seed=1", {"equalize", "round", "bias", "ranges"}, {"fp32.onnx"}),
    ],
)
def test_a_dry_run_names_what_a_change_makes_stale(
    corrected: tuple[Path, RunResult],
    recipe_with: RecipeWith,
    change: str,
    made: set[str],
    kept: set[str],
) -> None:
    result = run_recipe(recipe_with(change), corrected[0], "dry", dry=True)
    assert made <= names_of(result.made)
    assert kept <= names_of(result.kept)


@pytest.mark.parametrize("stage", ["equalize", "round", "bias"])
def test_an_interrupted_correction_leaves_nothing_and_goes_on(
    stage: str, tmp_path: Path, recipe_with: RecipeWith, corrected: tuple[Path, RunResult]
) -> None:
    from deploy_tools.corrections import bias, equalize, rounding

    module = {"equalize": equalize, "round": rounding, "bias": bias}[stage]
    out = Path(shutil.copytree(corrected[0], tmp_path / "out"))
    change = f"data.calibration.seed={7}"

    def interrupted(*_args: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.onnx, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe_with(change), out, "first")
    assert not list(out.rglob("*.part"))
    for artifact in read_manifest(out).values():
        assert sha256_of_file(out / artifact.file) == artifact.sha256


def test_without_torch_the_variants_say_what_to_install(
    tmp_path: Path, recipe_with: RecipeWith, corrected: tuple[Path, RunResult]
) -> None:
    out = Path(shutil.copytree(corrected[0], tmp_path / "out"))

    def absent(name: str, extra: str, what: str) -> None:
        raise MissingDependencyError(f"{what} needs {name}.", f"Install deploy-tools[{extra}].")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(correct, "require", absent)
        result = run_recipe(recipe_with("data.calibration.seed=3"), out, "no torch")
    entry = {v["id"]: v for v in result.report["variants"]}["int8-static-ort"]
    assert entry["build"]["status"] == "skipped"
    assert "deploy-tools[torch]" in entry["build"]["reason"]


def test_no_choice_reads_an_evaluation_image(
    tmp_path: Path, recipe_with: RecipeWith, corrected: tuple[Path, RunResult]
) -> None:
    """Everything that is chosen (factors, ranges, biases, epoch) comes from the training split."""
    from deploy_tools.artifacts import ArtifactDirectory
    from deploy_tools.data.source import ArraySource
    from deploy_tools.pipeline.stages import StageRunner

    out = Path(shutil.copytree(corrected[0], tmp_path / "out"))
    read: list[str] = []
    with ArtifactDirectory(out) as directory, pytest.MonkeyPatch.context() as patch:
        run = Run(recipe_with("data.calibration.seed=5"), StageRunner(directory), "test")
        fp32 = run.export()
        run.select()  # compares contents with the evaluation images, and chooses nothing else
        real = ArraySource.load

        def watched(self: ArraySource, index: int) -> np.ndarray:
            read.append(self.split)
            return real(self, index)

        patch.setattr(ArraySource, "load", watched)
        patch.setattr(Run, "select", lambda self: chosen)
        chosen = _selection(run)
        patch.setattr(Run, "_refuse_overlap", lambda self, indices: None)
        run.make_variants(fp32)
        assert all(outcome.ok("build") for outcome in run.outcomes)
    assert set(read) == {"train"}


def _selection(run: Run):  # type: ignore[no-untyped-def]
    from calibration.select import SelectConfig, select_images

    return select_images(run.calibration, SelectConfig(64, "stratified", 5))


def test_qat_images_may_not_be_evaluation_images(tmp_path: Path, recipe_with: RecipeWith) -> None:
    recipe = recipe_with(
        "data.evaluation.split=train", "data.evaluation.images=all",
        "variant.2.qat.images=400",
    )  # fmt: skip
    with pytest.raises(UserError, match="evaluation"):
        run_recipe(recipe, tmp_path / "out", "overlap")
