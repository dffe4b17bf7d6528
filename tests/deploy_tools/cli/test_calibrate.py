"""calibrate, command by command: what it keeps, and options that would change nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx_samples import saved, two_gemms

from deploy_tools.cli.main import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def args(tmp_path: Path) -> list[str]:
    """A small model and 20 images of its size."""
    generator = np.random.Generator(np.random.PCG64(0))
    images = generator.integers(0, 256, (20, 4, 4), np.uint8)
    np.savez(tmp_path / "train.npz", images=images, labels=np.arange(20) % 5)
    model = saved(two_gemms(), tmp_path / "m.onnx")
    data = ["--source", "npz", "--data", str(tmp_path)]
    return ["calibrate", str(model), *data, "-q", "--threads", "1", "-o", str(tmp_path / "out")]


@pytest.mark.parametrize("damage", ["cut", "garbage", "old schema"])
def test_statistics_that_cannot_be_read_are_made_again(
    damage: str, args: list[str], tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "out" / "calibration"
    assert main([*args, "--images", "10"]) == 0
    statistics, ranges = folder / "statistics.npz", (folder / "ranges.json").read_bytes()
    whole = statistics.read_bytes()
    with np.load(statistics) as file:
        header, counts = file["header"].tobytes(), file["counts"]
    assert b'"schema": 1' in header
    if damage == "old schema":
        old = np.frombuffer(header.replace(b'"schema": 1', b'"schema": 0'), np.uint8)
        np.savez_compressed(statistics, header=old, counts=counts)
    else:
        statistics.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"garbage")
    assert main([*args, "--images", "10"]) == 0, capsys.readouterr().err
    with np.load(statistics) as file:
        assert file["header"].tobytes() == header
    assert (folder / "ranges.json").read_bytes() == ranges


@pytest.mark.parametrize(
    ("given", "option", "fitting"),
    [
        (["--percentile", "99.999"], "--percentile", "--method percentile"),
        (["--method", "mse", "--percentile", "99"], "--percentile", "--method percentile"),
        (["--choose", "list", "--list", "LIST", "--images", "5"], "--images", "stratified"),
        (["--choose", "list", "--list", "LIST", "--seed", "0"], "--seed", "--choose random"),
        (["--images", "5", "--list", "LIST"], "--list", "--choose list"),
    ],
)
def test_an_option_without_effect_is_refused(
    given: list[str], option: str, fitting: str, args: list[str], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "list").write_text("0\n1\n2\n")
    words = [str(tmp_path / "list") if word == "LIST" else word for word in given]
    assert main([*args, *words]) == 2
    shown = capsys.readouterr().err
    assert f"{option} has no effect" in shown
    assert fitting in shown
    assert not (tmp_path / "out").exists()


def test_the_same_options_where_they_fit(args: list[str], tmp_path: Path) -> None:
    from deploy_tools.data import open_source

    source = open_source("npz", tmp_path, "train")
    (tmp_path / "list").write_text("\n".join(source.image_id(i) for i in range(6)))
    method = ["--method", "percentile", "--percentile", "99"]
    assert main([*args, *method, "--choose", "random", "--images", "5", "--seed", "3"]) == 0
    assert main([*args, *method, "--choose", "list", "--list", str(tmp_path / "list")]) == 0
