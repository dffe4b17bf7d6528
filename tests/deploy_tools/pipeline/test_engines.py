"""TensorRT variants in a run: what is built, simulated, skipped and failed, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks.predictions import Predictions
from deploy_tools.artifacts import read_manifest
from deploy_tools.data.source import batches
from deploy_tools.data.splits import stratified_choice
from deploy_tools.engine_files import read_sidecar
from deploy_tools.errors import MissingDependencyError, UserError
from deploy_tools.onnx_files import input_spec_of, load_onnx
from deploy_tools.pipeline import RunResult, engines, run_recipe, variants
from deploy_tools.recipe import Recipe, load_recipe
from deploy_tools.runtimes import RuntimeConfig, open_session

pytest.importorskip("tensorrt_rtx")

RECIPE = """
[model]
arch = "resnet20-cifar"
checkpoint = "{checkpoint}"

[data]
source = "fashion-mnist"
calibration = {{ split = "train", images = 64 }}
evaluation = {{ split = "test", images = 100 }}

[[variant]]
precision = "fp16"
target = "tensorrt-rtx"
batch = {{ min = 1, opt = 2, max = 4 }}

[[variant]]
precision = "int8"
method = "static"
target = "tensorrt-rtx"
ranges = "minmax"

[[variant]]
precision = "int8"
method = "static"
target = "tensorrt"
ranges = "minmax"
rest = "fp32"
last_gemm = false

[speed]
batch = 4
rounds = 3
seconds = 0.01
"""
NO_GPU = "tensorrt-rtx engines need a GPU to run: no GPU in this test"


@pytest.fixture(scope="module")
def no_gpu() -> Iterator[None]:
    """The same outcome on machines with a GPU and without."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (variants, engines):
            patch.setattr(module, "find_gpu", lambda: None)
        patch.setattr(variants, "why_no_gpu", lambda: "no GPU in this test")
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, demo_checkpoint: Path) -> Recipe:
    path = tmp_path_factory.mktemp("engines") / "engines.toml"
    path.write_text(RECIPE.format(checkpoint=demo_checkpoint))
    return load_recipe(path)


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, recipe: Recipe, no_gpu: None
) -> tuple[Path, RunResult]:
    folder = tmp_path_factory.mktemp("out")
    return folder, run_recipe(recipe, folder, "deploy-tools run engines.toml")


def by_id(result: RunResult) -> dict[str, Any]:
    return {variant["id"]: variant for variant in result.report["variants"]}


def test_engines_are_built_simulated_and_not_timed(run: tuple[Path, RunResult]) -> None:
    folder, result = run
    assert result.failed == ()
    found = by_id(result)
    for name, runs_in in (("fp16-tensorrt-rtx", "fp16"), ("int8-tensorrt-rtx", "int8+fp16")):
        variant = found[name]
        assert variant["build"] == {"status": "ok", "reason": ""}
        assert variant["runs_in"] == runs_in
        assert variant["file"] == f"{name}.engine"
        assert variant["accuracy"]["simulated"] is True
        assert variant["accuracy"]["status"] == "ok"
        assert variant["provider"] is None
        assert (variant["speed"]["status"], variant["speed"]["reason"]) == ("skipped", NO_GPU)
        sidecar = read_sidecar(folder / variant["file"])
        assert sidecar.precision == runs_in
        assert sidecar.input_spec is not None
    assert read_sidecar(folder / "fp16-tensorrt-rtx.engine").profile["max"][0] == 4
    assert read_sidecar(folder / "int8-tensorrt-rtx.engine").profile["max"][0] == 32


def test_a_flavour_that_is_missing_is_skipped_and_its_accuracy_simulated(
    run: tuple[Path, RunResult],
) -> None:
    variant = by_id(run[1])["int8-tensorrt"]
    if variant["build"]["status"] == "ok":
        pytest.skip("full TensorRT is installed and built the engine")
    assert variant["build"]["status"] == "skipped"
    assert "TensorRT" in variant["build"]["reason"]
    assert variant["file"] == "int8-tensorrt.onnx"
    assert variant["runs_in"] is None
    assert variant["accuracy"]["simulated"] is True
    assert variant["speed"]["status"] == "skipped"


def test_simulation_runs_the_very_file_that_was_built(
    run: tuple[Path, RunResult], fashion_test: Any
) -> None:
    folder, _ = run
    manifest = read_manifest(folder)
    for name in ("fp16-tensorrt-rtx", "int8-tensorrt-rtx"):
        model, engine = manifest[f"{name}.onnx"], manifest[f"{name}.engine"]
        assert engine.parents == {"model": model.sha256}
        assert read_sidecar(folder / engine.file).onnx_sha256 == model.sha256
        predictions = manifest[f"predictions/{name}.npz"]
        assert predictions.parents["model"] == model.sha256
        assert predictions.settings["fusions"] is False
        assert predictions.settings["runtime"] == "onnxruntime"
        assert manifest[f"{name}.engine.json"].stage == "build"
        session = open_session(folder / model.file, RuntimeConfig(fusions=False))
        found = Predictions.load(folder / predictions.file)
        source = stratified_choice(fashion_test.labels, 100, seed=0).tolist()
        spec = input_spec_of(load_onnx(folder / model.file), folder / model.file)
        images = next(batches(fashion_test, spec, 100, source))[0]
        np.testing.assert_allclose(found.logits, session.run(images)[0], atol=2e-3)


def test_settings_of_a_variant_reach_its_file(run: tuple[Path, RunResult]) -> None:
    folder, _ = run

    def dtypes(name: str) -> set[str]:
        proto = onnx.load(str(folder / name))
        return {onnx.TensorProto.DataType.Name(t.data_type) for t in proto.graph.initializer}

    assert "FLOAT16" in dtypes("int8-tensorrt-rtx.onnx")
    assert "FLOAT" not in dtypes("int8-tensorrt-rtx.onnx")
    assert "FLOAT16" not in dtypes("int8-tensorrt.onnx")
    gemm = next(
        n for n in onnx.load(str(folder / "int8-tensorrt.onnx")).graph.node if n.op_type == "Gemm"
    )
    assert gemm.input[1] == "linear.weight", "last_gemm = false leaves it in float"


def test_fp16_is_closer_to_fp32_than_int8(run: tuple[Path, RunResult]) -> None:
    found = by_id(run[1])
    sqnr = {name: found[name]["accuracy"]["logit_sqnr_db"] for name in found if "tensorrt" in name}
    assert 55 < sqnr["fp16-tensorrt-rtx"] < 90
    assert 25 < sqnr["int8-tensorrt-rtx"] < 50
    assert 25 < sqnr["int8-tensorrt"] < 50


def test_a_second_run_makes_nothing_and_a_lost_sidecar_is_made_again(
    run: tuple[Path, RunResult], recipe: Recipe, tmp_path: Path
) -> None:
    folder, _ = run
    again = run_recipe(recipe, folder, "again")
    assert again.made == ()
    (folder / "fp16-tensorrt-rtx.engine.json").unlink()
    mended = run_recipe(recipe, folder, "again")
    assert set(mended.made) == {"fp16-tensorrt-rtx.engine", "fp16-tensorrt-rtx.engine.json"}
    read_sidecar(folder / "fp16-tensorrt-rtx.engine")


def test_a_build_that_fails_stops_no_other(
    run: tuple[Path, RunResult], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: Path, *rest: Any) -> None:
        raise UserError(f"{model.name} cannot be built.")

    monkeypatch.setattr(engines, "engine_from_onnx", broken)
    result = run_recipe(recipe, run[0], "again", force=("build",))
    assert set(result.failed) == {"fp16-tensorrt-rtx", "int8-tensorrt-rtx"}
    variant = by_id(result)["int8-tensorrt-rtx"]
    assert variant["build"]["reason"] == "int8-tensorrt-rtx.onnx cannot be built."
    assert variant["accuracy"]["status"] == "ok"
    assert variant["file"] == "int8-tensorrt-rtx.onnx"
    # What an earlier run built was built from another file, for all that is known.
    assert not list(run[0].glob("*.engine*"))
    assert not [name for name in read_manifest(run[0]) if ".engine" in name]
    again = run_recipe(recipe, run[0], "again", dry=True)
    assert "int8-tensorrt-rtx.engine" in again.made


def test_a_skipped_build_leaves_no_engine_of_another_file(
    run: tuple[Path, RunResult], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("int8-tensorrt.engine", "int8-tensorrt.engine.json"):
        (run[0] / name).write_text("of an earlier day")
    run_recipe(recipe, run[0], "again", dry=True)
    assert (run[0] / "int8-tensorrt.engine").exists(), "a dry run removes nothing"

    def missing(name: str) -> None:
        raise MissingDependencyError(f"{name} is not installed.")

    monkeypatch.setattr(engines, "find_flavour", missing)
    result = run_recipe(recipe, run[0], "again")
    assert by_id(result)["int8-tensorrt"]["build"]["status"] == "skipped"
    assert not list(run[0].glob("*.engine*"))


def test_what_fp16_cannot_hold_names_the_variants_file(tmp_path: Path) -> None:
    from onnx_samples import saved, two_gemms

    proto = two_gemms()
    (weight,) = [t for t in proto.graph.initializer if t.name == "c.weight"]
    weight.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(1e5), weight.name)
    )

    def write(path: Path) -> dict[str, Any]:
        saved(proto, path)
        return {}

    with pytest.raises(UserError, match=r'in x\.onnx holds .* rest = "fp32"'):
        engines.in_fp16(write, tmp_path / "x.onnx")


def test_on_a_gpu_the_engine_itself_is_opened(
    run: tuple[Path, RunResult], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No GPU here: that the right file and runtime are asked for is what can be seen.
    from deploy_tools.pipeline import measure

    asked: list[tuple[str, str, bool]] = []
    opened: Callable[..., Any] = measure.open_session

    def record(path: Path, config: RuntimeConfig) -> Any:
        asked.append((path.name, config.runtime, config.fusions))
        if path.suffix == ".engine":
            return opened(path.with_suffix(".onnx"), RuntimeConfig())
        return opened(path, config)

    monkeypatch.setattr(variants, "why_simulated", lambda flavour: "")
    monkeypatch.setattr(measure, "open_session", record)
    result = run_recipe(recipe, run[0], "again", force=("predict",))
    assert ("int8-tensorrt-rtx.engine", "tensorrt-rtx", True) in asked
    assert ("fp16-tensorrt-rtx.engine", "tensorrt-rtx", True) in asked
    assert by_id(result)["int8-tensorrt-rtx"]["accuracy"]["simulated"] is False
    assert np.isfinite(by_id(result)["int8-tensorrt-rtx"]["accuracy"]["logit_sqnr_db"])
    # What could not be built is not run either.
    missing = by_id(result)["int8-tensorrt"]
    if missing["build"]["status"] == "skipped":
        assert missing["accuracy"]["status"] == "skipped"
