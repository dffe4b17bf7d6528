"""--input uint8: files for pixels beside the float ones, and every command that reads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy_tools.artifacts import read_manifest
from deploy_tools.cli.main import main
from deploy_tools.data.source import ImageSource
from deploy_tools.data.spec import InputSpec
from deploy_tools.onnx_files import input_spec_of, load_onnx

Capture = pytest.CaptureFixture[str]
SOURCE = ["--source", "fashion-mnist"]


def json_of(capsys: Capture) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def spec_of(path: Path) -> InputSpec:
    return input_spec_of(load_onnx(path), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, demo_checkpoint: Path) -> Path:
    out = tmp_path_factory.mktemp("pixels")
    model, ranges = str(out / "fp32.onnx"), str(out / "calibration" / "ranges.json")
    export = ["export", "--arch", "resnet20-cifar", "--checkpoint", str(demo_checkpoint)]
    calibrate = ["calibrate", model, *SOURCE, "--images", "64", "--method", "minmax", "-q"]
    static = ["quantize", "static", model, "--ranges", ranges]
    dynamic = ["quantize", "dynamic", model]
    for args in ([*export, "--input", "uint8"], calibrate, [*dynamic, "--input", "uint8"],
                 [*static, "--input", "uint8"], [*static, "--target", "tensorrt", "--input", "uint8"]):  # fmt: skip
        assert main([*args, "-o", str(out)]) == 0
    return out


NAMES = ["fp32", "int8-dynamic-ort", "int8-static-ort", "int8-static-tensorrt"]


@pytest.mark.parametrize("name", NAMES)
def test_the_float_file_stays_beside_it(folder: Path, name: str) -> None:
    assert not spec_of(folder / f"{name}.onnx").takes_pixels
    assert spec_of(folder / f"{name}-uint8.onnx").shape(2) == (2, 28, 28, 1)
    assert read_manifest(folder)[f"{name}-uint8.onnx"].stage == "rewrite"


def test_accuracy_is_that_of_the_float_files(folder: Path, capsys: Capture) -> None:
    files = [str(folder / f"{n}{kind}.onnx") for n in NAMES for kind in ("", "-uint8")]
    assert main(["bench", "accuracy", *files, *SOURCE, "--images", "200", "--json", "-q"]) == 0
    found = json_of(capsys)["models"]
    for name in NAMES:
        plain, pixels = (found[str(folder / f"{name}{kind}.onnx")] for kind in ("", "-uint8"))
        assert abs(plain["top1"] - pixels["top1"]) <= (0 if name != "int8-static-ort" else 0.01)
    assert found[files[1]]["agreement"] == 1.0


def test_speed_gives_each_file_what_it_takes(folder: Path, capsys: Capture) -> None:
    files = [str(folder / f"fp32{kind}.onnx") for kind in ("", "-uint8")]
    quick = ["--rounds", "3", "--seconds", "0.01", "--batch", "4", "--json", "-q"]
    assert main(["bench", "speed", *files, *SOURCE, *quick]) == 0
    runs = json_of(capsys)["runs"]
    assert [(run["model"], run["batch"]) for run in runs] == [(f, b) for b in (1, 4) for f in files]


def test_predict_says_the_same(
    folder: Path, fashion_test: ImageSource, tmp_path: Path, capsys: Capture
) -> None:
    Image.fromarray(np.asarray(fashion_test.load(3))[..., 0]).save(tmp_path / "photo.png")
    said = []
    for kind in ("", "-uint8"):
        assert main(["predict", str(folder / f"fp32{kind}.onnx"), str(tmp_path / "photo.png"), "--json"]) == 0  # fmt: skip
        said.append(json_of(capsys)["classes"])
    assert [c["label"] for c in said[0]] == [c["label"] for c in said[1]]
    assert said[0][0]["probability"] == pytest.approx(said[1][0]["probability"], abs=1e-4)


@pytest.mark.parametrize("command", ["calibrate", "quantize static", "quantize qat", "sensitivity"])
def test_what_starts_from_floats_says_so(
    folder: Path, tmp_path: Path, capsys: Capture, command: str
) -> None:
    args = [*command.split(), str(folder / "fp32-uint8.onnx"), *SOURCE, "-o", str(tmp_path)]
    assert main(args) == 2
    assert "takes uint8 pixels" in capsys.readouterr().err
