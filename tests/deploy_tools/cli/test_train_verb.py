"""The train command: what it refuses before the first epoch, and what it writes down."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from deploy_tools.cli.main import main

Capture = pytest.CaptureFixture[str]
LABELS = ("red", "green", "blue", "black", "white")
RECIPE = """
[model]
arch = "resnet20-cifar"
{classes}
[input]
size = [8, 8]
mean = [0.5]
std = [0.25]
{labels}
[data]
source = "npz"
root = "{root}"
[train]
epochs = 1
batch = 8
validation_images = 5
threads = 1
"""


def recipe(folder: Path, labels: str = "", classes: str = "", named: bool = True) -> Path:
    generator = np.random.Generator(np.random.PCG64(0))
    arrays = {
        "images": generator.integers(0, 256, (30, 8, 8), np.uint8), "labels": np.arange(30) % 5,
    }  # fmt: skip
    names = {"classes": np.array(["a", "b", "c", "d", "e"])} if named else {}
    np.savez(folder / "train.npz", **arrays, **names)
    path = folder / "train.toml"
    path.write_text(RECIPE.format(root=folder, labels=labels, classes=classes))
    return path


def train(path: Path, out: Path, *more: str) -> int:
    return main(["train", str(path), "-o", str(out), "-q", *more])


def kept_labels(out: Path) -> list[str]:
    with safe_open(out / "checkpoint.safetensors", "pt") as file:
        return json.loads(file.metadata()["input_spec"])["labels"]


def test_a_class_count_that_the_data_does_not_have(tmp_path: Path, capsys: Capture) -> None:
    root = Path(__file__).resolve().parents[3]
    shipped = root / "deploy_tools" / "assets" / "train-resnet20-fashion-mnist.toml"
    assert train(shipped, tmp_path / "out", "--set", "model.num_classes=5") == 2
    shown = capsys.readouterr().err
    assert "10 classes and the model 5" in shown
    assert "[model] num_classes" in shown
    assert not (tmp_path / "out").exists()


def test_no_class_count_anywhere(tmp_path: Path, capsys: Capture) -> None:
    assert train(recipe(tmp_path, named=False), tmp_path / "out") == 2
    assert "how many classes" in capsys.readouterr().err


def test_labels_of_the_recipe_are_kept(tmp_path: Path) -> None:
    path = recipe(tmp_path, f"labels = {json.dumps(LABELS)}")
    assert train(path, tmp_path / "out") == 0
    assert kept_labels(tmp_path / "out") == list(LABELS)


def test_labels_that_are_too_few(tmp_path: Path, capsys: Capture) -> None:
    assert train(recipe(tmp_path, 'labels = ["red", "green"]'), tmp_path / "out") == 2
    assert "labels names 2 classes and the model has 5" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_finished_training_is_not_replaced_unasked(tmp_path: Path, capsys: Capture) -> None:
    path, out = recipe(tmp_path), tmp_path / "out"
    assert train(path, out) == 0
    assert kept_labels(out) == ["a", "b", "c", "d", "e"]
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert train(path, out, "--set", "train.seed=1") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert train(path, out, "--set", "train.seed=1", "--overwrite") == 0
    assert json.loads((out / "train.json").read_text())["train"]["seed"] == 1


def test_an_overwritten_training_that_is_interrupted_leaves_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_args: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    out.mkdir()
    (out / "train.json").write_text("{}")
    monkeypatch.setattr("deploy_tools.training.train.train_model", interrupted)
    assert train(recipe(tmp_path), out, "--overwrite") == 130
    assert not (out / "train.json").exists()
