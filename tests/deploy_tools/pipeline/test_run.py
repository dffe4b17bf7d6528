from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.predictions import Predictions
from benchmarks.report import load_report
from deploy_tools.artifacts import ArtifactDirectory, read_manifest, sha256_of_file
from deploy_tools.errors import MissingDependencyError, OutputError, UserError
from deploy_tools.pipeline import RunResult, run_recipe
from deploy_tools.pipeline import quantize as quantize_stage
from deploy_tools.recipe import Recipe, load_recipe

SmallRun = tuple[Path, RunResult]
RecipeWith = Callable[..., Recipe]
IDS = ["fp32-torch", "fp32-ort", "int8-dynamic-ort", "int8-static-ort"]


@pytest.fixture
def copy(small_run: SmallRun, tmp_path: Path) -> Path:
    """The finished folder, as a copy that a test may change."""
    return Path(shutil.copytree(small_run[0], tmp_path / "out"))


def test_a_run_reports_every_variant(small_run: SmallRun) -> None:
    folder, result = small_run
    assert [v["id"] for v in result.report["variants"]] == IDS
    assert load_report(folder) == json.loads(json.dumps(result.report))
    for variant in result.report["variants"]:
        assert variant["build"]["status"] == variant["accuracy"]["status"] == "ok"
        assert variant["accuracy"]["images"] == 300
        assert [run["scenario"] for run in variant["speed"]["runs"]] == ["single-stream", "offline"]
    for name in ("report.html", "report.md", "report.json", "manifest.json"):
        assert (folder / name).stat().st_size > 500


def test_the_report_says_what_the_predictions_say(small_run: SmallRun) -> None:
    folder, result = small_run
    base = Predictions.load(folder / "predictions" / "fp32-ort.npz")
    for variant in result.report["variants"]:
        found = Predictions.load(folder / variant["accuracy"]["predictions"])
        assert variant["accuracy"]["top1"] == pytest.approx(found.correct.mean())
        assert variant["accuracy"]["agreement"] == pytest.approx((found.top1 == base.top1).mean())
        drop = 100 * (base.correct.mean() - found.correct.mean())
        assert variant["accuracy"]["drop_pp"] == pytest.approx(drop)


def test_int8_is_really_int8_and_close_to_fp32(small_run: SmallRun) -> None:
    by_id = {v["id"]: v for v in small_run[1].report["variants"]}
    static, dynamic = by_id["int8-static-ort"], by_id["int8-dynamic-ort"]
    assert static["runs_in"] == dynamic["runs_in"] == "int8+fp32"
    assert static["size_bytes"] < 0.4 * by_id["fp32-ort"]["size_bytes"]
    assert 25 < static["accuracy"]["logit_sqnr_db"] < 60
    assert by_id["fp32-torch"]["accuracy"]["logit_sqnr_db"] > 100


def test_every_file_is_in_the_manifest_with_its_hash_and_parents(small_run: SmallRun) -> None:
    folder, _ = small_run
    manifest = read_manifest(folder)
    for artifact in manifest.values():
        assert sha256_of_file(folder / artifact.file) == artifact.sha256
        assert artifact.parents
        assert artifact.versions["deploy-tools"]
    static = manifest["int8-static-ort.onnx"]
    assert static.parents["model"] == manifest["fp32.onnx"].sha256
    assert static.parents["ranges"] == manifest["ranges-minmax"].sha256
    assert not list(folder.rglob("*.part"))


def test_a_second_run_makes_nothing(copy: Path, tmp_path: Path, recipe_with: RecipeWith) -> None:
    before = {p: p.read_bytes() for p in copy.rglob("*.onnx")}
    result = run_recipe(recipe_with(), copy, "again")
    assert result.made == ()
    assert set(result.kept) >= {"fp32.onnx", "int8-static-ort.onnx", "samples/fp32-ort.jsonl"}
    assert all(p.read_bytes() == old for p, old in before.items())


def test_a_changed_setting_makes_only_what_depends_on_it(
    copy: Path, tmp_path: Path, recipe_with: RecipeWith
) -> None:
    recipe = recipe_with("variant.1.ranges=mse")
    result = run_recipe(recipe, copy, "mse")
    assert {"ranges-mse", "int8-static-ort.onnx", "predictions/int8-static-ort.npz"} <= set(
        result.made
    )
    assert {"fp32.onnx", "statistics", "selection", "int8-dynamic-ort.onnx"} <= set(result.kept)
    assert "predictions/fp32-ort.npz" in result.kept


@pytest.mark.parametrize("file", ["fp32.onnx", "int8-static-ort.onnx", "samples/fp32-ort.jsonl"])
def test_a_tampered_file_is_made_again(
    copy: Path, tmp_path: Path, recipe_with: RecipeWith, file: str
) -> None:
    original = (copy / file).read_bytes()
    (copy / file).write_bytes(original + b" ")
    result = run_recipe(recipe_with(), copy, "again")
    assert file in result.made
    if file.endswith(".onnx"):
        assert (copy / file).read_bytes() == original


def test_force_makes_a_stage_again(copy: Path, tmp_path: Path, recipe_with: RecipeWith) -> None:
    result = run_recipe(recipe_with(), copy, "again", force=["select"])
    assert result.made == ("selection",)
    with pytest.raises(UserError, match='Did you mean "export"'):
        run_recipe(recipe_with(), copy, "again", force=["exprot"])


def test_a_dry_run_makes_nothing(tmp_path: Path, copy: Path, recipe_with: RecipeWith) -> None:
    fresh = tmp_path / "fresh"
    result = run_recipe(recipe_with(), fresh, "dry", dry=True)
    assert "fp32.onnx" in result.made
    assert not result.kept
    assert {p.name for p in fresh.rglob("*")} <= {".lock"}
    again = run_recipe(recipe_with(), copy, "dry", dry=True)
    assert again.made == ()


def test_calibration_images_that_are_evaluation_images_are_refused(
    tmp_path: Path, copy: Path, recipe_with: RecipeWith
) -> None:
    recipe = recipe_with("data.calibration.split=test", "data.evaluation.images=all")
    with pytest.raises(UserError, match="evaluation"):
        run_recipe(recipe, copy, "overlap")


def test_a_variant_that_fails_does_not_stop_the_others(
    copy: Path, tmp_path: Path, recipe_with: RecipeWith
) -> None:
    recipe = recipe_with("variant.1.exclude=['layer1.0.conv9']")
    result = run_recipe(recipe, copy, "fails")
    assert result.failed == ("int8-static-ort",)
    by_id = {v["id"]: v for v in result.report["variants"]}
    assert 'Did you mean "layer1.0.conv' in by_id["int8-static-ort"]["build"]["reason"]
    assert by_id["int8-dynamic-ort"]["accuracy"]["status"] == "ok"


def test_a_missing_runtime_is_a_skip_with_its_reason(
    copy: Path, tmp_path: Path, recipe_with: RecipeWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploy_tools.pipeline import measure

    real = measure.open_session

    def without_openvino(path, config):  # type: ignore[no-untyped-def]
        if config.runtime == "openvino":
            raise MissingDependencyError("the openvino runtime is missing.", "Install it.")
        return real(path, config)

    monkeypatch.setattr(measure, "open_session", without_openvino)
    recipe = recipe_with("variant.1.target=openvino")
    result = run_recipe(recipe, copy, "skip")
    entry = next(v for v in result.report["variants"] if v["id"] == "int8-static-openvino")
    assert entry["build"]["status"] == "ok"
    assert entry["accuracy"]["status"] == entry["speed"]["status"] == "skipped"
    assert "openvino runtime is missing" in entry["accuracy"]["reason"]
    assert result.failed == ()


def test_another_architecture_is_simulated_and_not_timed(
    copy: Path, tmp_path: Path, recipe_with: RecipeWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    recipe = recipe_with("variant.1.target=arm")
    entry = run_recipe(recipe, copy, "arm").report["variants"][-1]
    assert entry["id"] == "int8-static-arm"
    assert entry["accuracy"]["simulated"] is True
    assert entry["speed"]["status"] == "skipped"
    assert "x86_64" in entry["speed"]["reason"]


def test_a_budget_that_is_missed_is_named(copy: Path, recipe_with: RecipeWith) -> None:
    # Ranges that cut off two fifths of all values lose accuracy for real.
    lossy = ["variant.1.ranges=percentile", "variant.1.percentile=60.0"]
    result = run_recipe(recipe_with(*lossy, "budget.max_drop_pp=5.0"), copy, "budget")
    assert result.missed == ("int8-static-ort",)


def test_an_interrupted_run_goes_on_where_it_was(
    tmp_path: Path, recipe_with: RecipeWith, monkeypatch: pytest.MonkeyPatch, small_run: SmallRun
) -> None:
    out, recipe = tmp_path / "out", recipe_with()

    def interrupted(*_args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(quantize_stage, "qdq_from_onnx", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, out, "first")
    assert not (out / "int8-static-ort.onnx").exists()
    assert not list(out.rglob("*.part"))
    result = run_recipe(recipe, out, "second")
    assert {"fp32.onnx", "statistics", "int8-dynamic-ort.onnx"} <= set(result.kept)
    for name in ("fp32.onnx", "int8-dynamic-ort.onnx", "int8-static-ort.onnx"):
        assert sha256_of_file(out / name) == sha256_of_file(small_run[0] / name)


def test_two_runs_in_one_folder_are_refused(
    copy: Path, tmp_path: Path, recipe_with: RecipeWith
) -> None:
    with ArtifactDirectory(copy), pytest.raises(OutputError, match="held by another run"):
        run_recipe(recipe_with(), copy, "second")


def test_a_class_count_that_does_not_fit_is_refused(
    tmp_path: Path, recipe_with: RecipeWith
) -> None:
    recipe = recipe_with("model.num_classes=7")
    with pytest.raises(UserError, match="10 classes"):
        run_recipe(recipe, tmp_path / "out", "classes")
    assert not (tmp_path / "out" / "fp32.onnx").exists()


def test_json_reports_hold_no_nan(small_run: SmallRun) -> None:
    text = (small_run[0] / "report.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in report.json"))


def test_the_lock_file_repeats_the_run(copy: Path, tmp_path: Path, recipe_with: RecipeWith) -> None:
    result = run_recipe(recipe_with("variant.1.ranges=mse", "speed.batch=2"), copy, "first")
    assert result.made
    again = run_recipe(load_recipe(copy / "recipe.lock.toml"), copy, "again")
    assert again.made == ()


@pytest.mark.parametrize(
    ("change", "made", "kept"),
    [
        ("data.calibration.seed=1", {"selection", "statistics", "int8-static-ort.onnx"}, {"fp32.onnx", "int8-dynamic-ort.onnx"}),
        ("data.calibration.images=65", {"statistics", "ranges-minmax"}, {"fp32.onnx"}),
        ("data.evaluation.images=301", {"predictions/fp32-ort.npz", "samples/fp32-ort.jsonl"}, {"fp32.onnx", "int8-static-ort.onnx"}),
        ("variant.1.per_channel=false", {"int8-static-ort.onnx"}, {"statistics", "ranges-minmax", "predictions/fp32-ort.npz"}),
        ("variant.1.exclude=['conv1']", {"int8-static-ort.onnx"}, {"statistics", "ranges-minmax"}),
        ("input.mean=[0.3]", {"fused", "fp32.onnx", "statistics", "predictions/fp32-ort.npz"}, set()),
        ("speed.threads=1", {"samples/fp32-ort.jsonl"}, {"fp32.onnx", "int8-static-ort.onnx"}),
        ("speed.batch=3", {"samples/fp32-ort.jsonl"}, {"predictions/fp32-ort.npz"}),
    ],
)  # fmt: skip
def test_a_dry_run_names_what_a_change_makes_stale(
    small_run: SmallRun, recipe_with: RecipeWith, change: str, made: set[str], kept: set[str]
) -> None:
    result = run_recipe(recipe_with(change), small_run[0], "dry", dry=True)
    assert made <= set(result.made)
    assert kept <= set(result.kept)


def test_another_runtime_version_makes_its_results_stale(
    small_run: SmallRun, recipe_with: RecipeWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploy_tools.pipeline import measure

    real = measure.describe_environment()
    packages = real["packages"] | {"onnxruntime": "99.0"}
    monkeypatch.setattr(measure, "describe_environment", lambda: real | {"packages": packages})
    result = run_recipe(recipe_with(), small_run[0], "dry", dry=True)
    assert {"predictions/fp32-ort.npz", "samples/fp32-ort.jsonl", "memory/fp32-ort"} <= set(
        result.made
    )
    assert {"fp32.onnx", "int8-static-ort.onnx", "predictions/fp32-torch.npz"} <= set(result.kept)


def test_a_changed_checkpoint_makes_everything_stale(
    small_run: SmallRun, recipe_with: RecipeWith, demo_checkpoint: Path, tmp_path: Path
) -> None:
    other = tmp_path / "elsewhere" / demo_checkpoint.name  # the name alone must not decide
    other.parent.mkdir()
    data = bytearray(demo_checkpoint.read_bytes())
    data[-1] ^= 1
    other.write_bytes(data)
    result = run_recipe(recipe_with(f"model.checkpoint={other}"), small_run[0], "dry", dry=True)
    assert "fp32.onnx" in result.made
    assert set(result.kept) <= {"selection"}


def test_the_code_of_ones_own_architecture_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploy_tools.pipeline.model import model_parents
    from deploy_tools.recipe import ModelTable

    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_own_net.py").write_text("def net(): ...\n")
    table = ModelTable("my_own_net:net", random_weights=True)
    before = model_parents(table)
    (tmp_path / "my_own_net.py").write_text("def net(): return 1\n")
    assert model_parents(table) != before
    assert "timm" in model_parents(ModelTable("timm:resnet18", random_weights=True))["code"]


def test_what_the_recipe_drops_leaves_the_manifest_and_the_report(
    copy: Path, recipe_with: RecipeWith
) -> None:
    recipe = recipe_with()
    fewer = replace(recipe, variant=recipe.variant[:1])
    report = run_recipe(fewer, copy, "fewer").report
    assert report["calibration"] is None
    assert "int8-static-ort.onnx" not in read_manifest(copy)


def test_a_variant_whose_speed_cannot_be_measured_stops_no_other(
    copy: Path, recipe_with: RecipeWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploy_tools.pipeline import measure

    real = measure.open_variant

    def broken(run, outcome):  # type: ignore[no-untyped-def]
        if outcome.variant.id == "int8-dynamic-ort":
            raise UserError("it does not open.")
        return real(run, outcome)

    monkeypatch.setattr(measure, "open_variant", broken)
    result = run_recipe(recipe_with("speed.batch=2"), copy, "speed")
    by_id = {v["id"]: v for v in result.report["variants"]}
    assert result.failed == ("int8-dynamic-ort",)
    assert "does not open" in by_id["int8-dynamic-ort"]["speed"]["reason"]
    assert by_id["int8-static-ort"]["speed"]["status"] == "ok"


def test_the_speed_recipe_runs_on_any_image_folder(tmp_path: Path) -> None:
    generator = np.random.Generator(np.random.PCG64(0))
    for split, count in (("train", 4), ("val", 2)):
        for label in range(3):
            folder = tmp_path / "photos" / split / str(label)
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (40, 50, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    changes = [
        "model.arch=resnet20-cifar", "input.size=[32, 32]", "input.resize=32", "speed.rounds=3",
        "speed.seconds=0.01", "speed.batch=2", "data.calibration.images=12",
        "data.evaluation.images=6", f"data.root={tmp_path / 'photos'}",
    ]  # fmt: skip
    root = Path(__file__).resolve().parents[3]
    recipe = load_recipe(root / "recipes" / "resnet50-speed.toml", changes)
    report = run_recipe(recipe, tmp_path / "out", "speed").report
    assert report["model"]["weights"] == "random"
    assert report["model"]["num_classes"] == 3
    assert [v["id"] for v in report["variants"]] == [
        "fp32-torch", "fp32-ort", "int8-static-ort", "bf16-openvino", "int8-static-openvino",
    ]  # fmt: skip
