"""The way from a checkpoint to a measured INT8 file, command by command, on real images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy_tools.artifacts import read_manifest, sha256_of_file
from deploy_tools.cli.main import main
from deploy_tools.data.source import ImageSource

Capture = pytest.CaptureFixture[str]


def json_of(capsys: Capture) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, demo_checkpoint: Path) -> Path:
    """Exported, calibrated and quantized by the commands themselves."""
    out = tmp_path_factory.mktemp("verbs")
    model = str(out / "fp32.onnx")
    ranges = str(out / "calibration" / "ranges.json")
    for args in (
        ["export", "--arch", "resnet20-cifar", "--checkpoint", str(demo_checkpoint)],
        [
            "calibrate",
            model,
            "--source",
            "fashion-mnist",
            "--images",
            "64",
            "--method",
            "mse",
            "-q",
        ],
        ["quantize", "dynamic", model],
        ["quantize", "static", model, "--ranges", ranges],
        ["quantize", "static", model, "--ranges", ranges, "--target", "openvino"],
    ):
        assert main([*args, "-o", str(out)]) == 0
    return out


def test_the_commands_write_their_files(folder: Path) -> None:
    names = {p.name for p in folder.rglob("*") if p.is_file()}
    assert names >= {
        "fp32.onnx", "selection.json", "statistics.npz", "ranges.json", "int8-dynamic-ort.onnx",
        "int8-static-ort.onnx", "int8-static-openvino.onnx",
    }  # fmt: skip
    assert not [n for n in names if n.endswith(".part")]
    manifest = read_manifest(folder)
    assert {a.file for a in manifest.values()} == {
        str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()
    } - {"manifest.json", ".lock"}
    for artifact in manifest.values():
        assert sha256_of_file(folder / artifact.file) == artifact.sha256
    assert manifest["int8-static-ort.onnx"].parents["fp32.onnx"] == manifest["fp32.onnx"].sha256


def test_calibrate_uses_fitting_statistics_again(folder: Path, capsys: Capture) -> None:
    statistics = folder / "calibration" / "statistics.npz"
    before = statistics.stat().st_mtime_ns
    args = [
        "calibrate",
        str(folder / "fp32.onnx"),
        "--source",
        "fashion-mnist",
        "-q",
        "-o",
        str(folder),
    ]
    assert main([*args, "--images", "64", "--method", "mse"]) == 0
    assert statistics.stat().st_mtime_ns == before
    assert main([*args, "--images", "65", "--method", "mse"]) == 0
    assert statistics.stat().st_mtime_ns != before


def test_fuse_prints_its_proof_and_its_file_exports(
    demo_checkpoint: Path, tmp_path: Path, capsys: Capture, folder: Path
) -> None:
    args = ["--arch", "resnet20-cifar", "-o", str(tmp_path)]
    assert main(["fuse", "--checkpoint", str(demo_checkpoint), *args]) == 0
    assert "folded 21 of 21 BatchNorm layers" in capsys.readouterr().out
    fused = str(tmp_path / "fused.safetensors")
    assert main(["export", "--checkpoint", fused, *args]) == 0
    assert (tmp_path / "fp32.onnx").read_bytes() == (folder / "fp32.onnx").read_bytes()
    assert main(["fuse", "--checkpoint", fused, *args]) == 2
    assert "folded already" in capsys.readouterr().err


def test_inspect_tells_what_is_quantized(folder: Path, capsys: Capture) -> None:
    assert main(["inspect", str(folder / "int8-static-ort.onnx")]) == 0
    assert "22 of 22 layers quantized, 100.0% of the weights" in capsys.readouterr().out
    assert main(["inspect", "--json", str(folder / "int8-dynamic-ort.onnx")]) == 0
    found = json_of(capsys)
    assert found["quantization"]["quantized_layers"] == 1
    assert found["spec"]["size"] == [28, 28]
    assert main(["inspect", str(folder / "calibration" / "ranges.json")]) == 0
    assert "layer1.0.conv1/relu" in capsys.readouterr().out


def test_bench_accuracy_compares_with_the_first_file(folder: Path, capsys: Capture) -> None:
    files = [str(folder / "fp32.onnx"), str(folder / "int8-static-ort.onnx")]
    args = ["--source", "fashion-mnist", "--images", "300", "-q", "--json"]
    assert main(["bench", "accuracy", *files, *args]) == 0
    models = json_of(capsys)["models"]
    assert models[files[0]]["logits_identical"] is True
    assert 25 < models[files[1]]["logit_sqnr_db"] < 60
    assert models[files[1]]["images"] == 300


def test_bench_speed_gives_ratios_with_intervals(folder: Path, capsys: Capture) -> None:
    files = [str(folder / "fp32.onnx"), str(folder / "int8-static-ort.onnx")]
    args = ["--source", "fashion-mnist", "--rounds", "3", "--seconds", "0.01", "-q", "--json"]
    assert main(["bench", "speed", *files, *args]) == 0
    runs = json_of(capsys)["runs"]
    assert len(runs) == 4
    assert all(low <= run["speedup"] <= high for run in runs for low, high in [run["speedup_ci95"]])
    assert main(["bench", "speed", files[0], files[0], "--source", "fashion-mnist"]) == 2


def test_predict_names_the_class_of_an_image(
    folder: Path, tmp_path: Path, fashion_test: ImageSource, capsys: Capture
) -> None:
    path = tmp_path / "boot.png"
    Image.fromarray(fashion_test.load(0)[..., 0]).save(path)
    assert main(["predict", str(folder / "int8-static-ort.onnx"), str(path), "--json"]) == 0
    classes = json_of(capsys)["classes"]
    assert classes[0]["label"] == "Ankle boot" == fashion_test.classes[fashion_test.labels[0]]
    assert classes[0]["probability"] > 0.5
    assert np.all(np.diff([c["probability"] for c in classes]) <= 0)


def test_ranges_of_another_model_are_refused(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes((folder / "int8-dynamic-ort.onnx").read_bytes())
    ranges = str(folder / "calibration" / "ranges.json")
    assert main(["quantize", "static", str(other), "--ranges", ranges, "-o", str(tmp_path)]) == 7
    assert "made from another file" in capsys.readouterr().err


def test_init_writes_a_recipe_that_loads(tmp_path: Path, capsys: Capture) -> None:
    from deploy_tools.recipe import load_recipe

    path = tmp_path / "mine.toml"
    assert main(["init", str(path)]) == 0
    assert load_recipe(path).model.arch == "resnet18"
    assert main(["init", str(path)]) == 2
    assert main(["init", str(path), "--overwrite"]) == 0


def test_doctor_names_a_target(capsys: Capture) -> None:
    from deploy_tools.quantization.targets import TARGETS

    assert main(["doctor", "--json"]) == 0
    assert json_of(capsys)["target"] in TARGETS


def test_train_keeps_a_checkpoint_that_exports(tmp_path: Path, capsys: Capture) -> None:
    root = Path(__file__).resolve().parents[3]
    recipe = str(root / "deploy_tools" / "assets" / "train-resnet20-fashion-mnist.toml")
    rows = tmp_path / "rows"
    _few_images(rows)
    changes = ["train.epochs=1", "train.validation_images=40", "train.batch=32", "data.source=npz"]
    sets = [part for change in changes for part in ("--set", change)]
    spec = [
        "--set",
        "input.size=[28, 28]",
        "--set",
        "input.mean=[0.286]",
        "--set",
        "input.std=[0.353]",
    ]
    assert (
        main(["train", recipe, "-o", str(tmp_path), "--data", str(rows), "-q", *sets, *spec]) == 0
    )
    record = json.loads((tmp_path / "train.json").read_text())
    assert record["epochs_run"] == 1
    checkpoint = str(tmp_path / "checkpoint.safetensors")
    assert (
        main(
            ["export", "--arch", "resnet20-cifar", "--checkpoint", checkpoint, "-o", str(tmp_path)]
        )
        == 0
    )


def _few_images(folder: Path) -> None:
    from deploy_tools.data import fashion_mnist

    source = fashion_mnist.load("train")
    images = np.stack([source.load(i) for i in range(200)])
    folder.mkdir()
    np.savez(folder / "train.npz", images=images, labels=source.labels[:200])


def test_bench_speed_takes_every_scenario(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    model = str(folder / "fp32.onnx")
    args = ["bench", "speed", model, "--source", "fashion-mnist", "--rounds", "3", "--seconds", "0.01", "-q"]  # fmt: skip
    chosen = ["--scenario", "server", "--scenario", "multi-stream", "--samples-per-query", "3", "--latency-limit", "4"]  # fmt: skip
    assert main([*args, *chosen, "--target-rate", "200", "--json", "-o", str(tmp_path)]) == 0
    multi, server = json_of(capsys)["runs"]
    assert (multi["scenario"], multi["batch"], multi["latency_limit_ms"]) == (
        "multi-stream",
        3,
        None,
    )
    assert (server["scenario"], server["batch"], server["target_rate"]) == ("server", 1, 200.0)
    assert server["latency_limit_ms"] == 4.0
    assert server["speedup"] is None
    assert server["sample_count"] == 3 * 100
    assert Path(server["samples"]).is_file()
    assert main([*args, *chosen, "--target-rate", "200"]) == 0
    text = capsys.readouterr().out
    assert "multi-stream" in text
    assert "Energy " in text


def test_bench_speed_refuses_options_without_effect(folder: Path, capsys: Capture) -> None:
    args = ["bench", "speed", str(folder / "fp32.onnx"), "--source", "fashion-mnist"]
    for option, scenario in (
        ("--latency-limit", "server"), ("--target-rate", "server"),
        ("--samples-per-query", "multi-stream"),
    ):  # fmt: skip
        assert main([*args, option, "5"]) == 2
        assert (
            f"{option} has no effect here: it goes with --scenario {scenario}"
            in capsys.readouterr().err
        )
    assert main([*args, "--end-to-end"]) == 2
    assert "no files to decode" in capsys.readouterr().err
