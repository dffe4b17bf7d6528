"""deploy-tools sensitivity: a table, JSON and a plot, from images that nothing else uses."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from deploy_tools.artifacts import read_manifest
from deploy_tools.cli import main as commands
from deploy_tools.cli.main import main
from deploy_tools.data import fashion_mnist

Capture = pytest.CaptureFixture[str]
FEW = ["--source", "fashion-mnist", "--images", "8"]


@pytest.fixture(autouse=True)
def _verb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(commands.COMMANDS, "sensitivity", "sensitivity")


@pytest.fixture
def no_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The split that judges cannot be read at all."""
    load = fashion_mnist.load

    def guarded(split: str, *rest: object) -> object:
        assert split != "test", "the evaluation split was read"
        return load(split, *rest)

    monkeypatch.setattr(fashion_mnist, "load", guarded)


@pytest.mark.usefixtures("no_evaluation")
def test_it_writes_a_table_json_and_a_plot(
    demo_onnx: Path, tmp_path: Path, capsys: Capture
) -> None:
    args = ["sensitivity", str(demo_onnx), *FEW, "--calibration-images", "20", "-q"]
    assert main([*args, "-o", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"layer1\.0\.conv2/add +branch +\d+\.\d\d \[", said)
    assert "Everything in INT8" in said
    report = json.loads((tmp_path / "sensitivity.json").read_text())
    assert len(report["items"]) == 31
    assert report["images"] == 8
    values = [item["sqnr_db"] for item in report["items"]]
    assert values == sorted(values)
    for item in report["items"]:
        low, high = item["sqnr_db_ci95"]
        assert low <= item["sqnr_db"] <= high
        assert item["agreement_ci95"][0] <= item["agreement"] <= item["agreement_ci95"][1]
    assert report["data"]["split"] == "train"
    picture = (tmp_path / "sensitivity.svg").read_text()
    assert ET.fromstring(picture.encode()).tag.endswith("svg")
    assert "layer3.2.conv2/add" in picture
    assert "var(--" not in picture
    assert {"sensitivity", "sensitivity.svg"} <= set(read_manifest(tmp_path))


def test_a_range_table_is_used_and_its_images_are_not(
    demo_onnx: Path, tmp_path: Path, capsys: Capture
) -> None:
    calibrate = ["calibrate", str(demo_onnx), "--source", "fashion-mnist", "--images", "20", "-q"]
    assert main([*calibrate, "-o", str(tmp_path)]) == 0
    ranges = tmp_path / "calibration" / "ranges.json"
    args = ["sensitivity", str(demo_onnx), *FEW, "--ranges", str(ranges), "-q", "--json"]
    capsys.readouterr()
    assert main([*args, "-o", str(tmp_path)]) == 0
    report = json.loads(capsys.readouterr().out)
    table = json.loads(ranges.read_text())
    assert report["ranges"]["images_sha256"] == table["data_sha256"]
    assert main([*args, "--calibration-images", "9", "-o", str(tmp_path)]) == 2
    selection = ranges.parent / "selection.json"
    other = json.loads(selection.read_text())
    other["images"].pop()
    selection.write_text(json.dumps(other))
    assert main([*args, "-o", str(tmp_path)]) == 7


def test_without_ray_the_extra_is_named(
    demo_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    args = ["sensitivity", str(demo_onnx), *FEW, "--calibration-images", "20", "-q"]
    assert main([*args, "--workers", "2", "--engine", "ray", "-o", str(tmp_path)]) == 3
    assert "deploy-tools[ray]" in capsys.readouterr().err
