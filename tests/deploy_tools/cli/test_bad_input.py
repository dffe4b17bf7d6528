"""Bad input, as a user meets it: one clear line, the right exit code, nothing half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from deploy_tools.cli.main import main

Capture = pytest.CaptureFixture[str]

RECIPE = """
[model]
arch = "resnet20-cifar"
checkpoint = "{checkpoint}"
[input]
size = [28, 28]
mean = [0.286]
std = [0.353]
[data]
source = "imagefolder"
root = "{root}"
calibration = {{ split = "train", images = 10 }}
evaluation = {{ split = "val", images = "all" }}
[[variant]]
precision = "int8"
method = "static"
[speed]
scenarios = []
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten classes of small image files, in train and val."""
    generator = np.random.Generator(np.random.PCG64(0))
    for split, count in (("train", 2), ("val", 1)):
        for label in range(10):
            folder = tmp_path / "photos" / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (28, 28), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def recipe(tmp_path: Path, photos: Path, demo_checkpoint: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(checkpoint=demo_checkpoint, root=photos))
    return path


def run(recipe: Path, out: Path, capsys: Capture, *more: str) -> tuple[int, str]:
    code = main(["run", str(recipe), "-o", str(out), "-q", *more])
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert not list(out.rglob("*.part")) if out.is_dir() else True
    return code, shown


def test_the_recipe_runs_when_nothing_is_wrong(
    recipe: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert run(recipe, tmp_path / "out", capsys)[0] == 0


def test_a_checkpoint_of_another_model(recipe: Path, tmp_path: Path, capsys: Capture) -> None:
    code, shown = run(recipe, tmp_path / "out", capsys, "--set", "model.arch=resnet32-cifar")
    assert code == 2
    assert "layer1.3.conv1.weight" in shown
    assert "resnet20-cifar" in shown
    assert not (tmp_path / "out" / "fp32.onnx").exists()


def test_a_checkpoint_that_is_no_checkpoint(recipe: Path, tmp_path: Path, capsys: Capture) -> None:
    garbage = tmp_path / "garbage.pth"
    garbage.write_bytes(b"not a checkpoint" * 100)
    code, shown = run(recipe, tmp_path / "out", capsys, "--checkpoint", str(garbage))
    assert code == 2
    assert "garbage.pth" in shown


def test_an_empty_image_folder(recipe: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty" / "train").mkdir(parents=True)
    (tmp_path / "empty" / "val").mkdir()
    code, shown = run(recipe, tmp_path / "out", capsys, "--data", str(tmp_path / "empty"))
    assert code == 2
    assert "empty" in shown


def test_a_corrupt_image_is_named(
    recipe: Path, tmp_path: Path, photos: Path, capsys: Capture
) -> None:
    broken = photos / "val" / "class3" / "0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    code, shown = run(recipe, tmp_path / "out", capsys)
    assert code == 2
    assert "class3" in shown
    assert "0.png" in shown


def test_a_class_count_that_does_not_match(
    recipe: Path, tmp_path: Path, photos: Path, capsys: Capture
) -> None:
    extra = photos / "val" / "class99"
    extra.mkdir()
    Image.new("L", (28, 28)).save(extra / "0.png")
    code, shown = run(recipe, tmp_path / "out", capsys)
    assert code == 2
    assert "11" in shown
    assert "10" in shown


def test_an_unknown_recipe_key(recipe: Path, tmp_path: Path, capsys: Capture) -> None:
    recipe.write_text(recipe.read_text().replace("checkpoint =", "checkpiont ="))
    code, shown = run(recipe, tmp_path / "out", capsys)
    assert code == 2
    assert 'unknown key "checkpiont"' in shown
    assert 'Did you mean "checkpoint"?' in shown


def test_calibration_images_that_are_evaluation_images(
    recipe: Path, tmp_path: Path, photos: Path, capsys: Capture
) -> None:
    copied = photos / "val" / "class4" / "copy.png"
    copied.write_bytes((photos / "train" / "class4" / "1.png").read_bytes())
    code, shown = run(recipe, tmp_path / "out", capsys, "--set", "data.calibration.images=20")
    assert code == 2
    assert "class4" in shown


def test_too_few_calibration_images(recipe: Path, tmp_path: Path, capsys: Capture) -> None:
    code, shown = run(recipe, tmp_path / "out", capsys, "--set", "data.calibration.images=500")
    assert code == 2
    assert "20" in shown


def test_an_unwritable_output_folder(recipe: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("")
    code, shown = run(recipe, tmp_path / "file" / "out", capsys)
    assert code == 8
    assert "cannot be written" in shown


@pytest.mark.parametrize("verb", ["calibrate", "quantize", "bench"])
def test_an_onnx_file_with_a_fixed_batch(
    verb: str, tmp_path: Path, demo_onnx: Path, capsys: Capture
) -> None:
    proto = onnx.load(str(demo_onnx))
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    path = tmp_path / "fixed.onnx"
    onnx.save(proto, str(path))
    out = ["-o", str(tmp_path / "out")]
    data = ["--source", "fashion-mnist"]
    args = {
        "calibrate": ["calibrate", str(path), *data, *out],
        "quantize": ["quantize", "dynamic", str(path), *out],
        "bench": ["bench", "accuracy", str(path), *data],
    }[verb]
    assert main(args) == 2
    assert "takes only batches of 4" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_truncated_onnx_file(size: int, tmp_path: Path, demo_onnx: Path, capsys: Capture) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(demo_onnx.read_bytes()[:size])
    assert main(["inspect", str(path)]) == 2
    shown = capsys.readouterr().err
    assert "not a valid ONNX file" in shown
    assert "Traceback" not in shown


def test_ctrl_c_in_the_middle(tmp_path: Path, demo_checkpoint: Path) -> None:
    out = tmp_path / "out"
    args = [
        sys.executable,
        "-c",
        "from deploy_tools.cli.main import entry; entry()",
        "demo",
        "-o",
        str(out),
    ]
    # In the background of a script SIGINT is ignored, and children inherit that.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        args, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=listen
    ) as process:
        end = time.monotonic() + 240
        while (
            time.monotonic() < end and not (out / "corrections").is_dir() and process.poll() is None
        ):
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        _, shown = process.communicate(timeout=60)
    assert process.returncode == 130, shown
    assert "interrupted" in shown
    assert "Traceback" not in shown
    assert (out / "fp32.onnx").is_file()
    assert not list(out.rglob("*.part"))
    assert not (out / "report.json").exists()
