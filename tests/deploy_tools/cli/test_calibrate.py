"""calibrate, command by command: what it keeps, and options that would change nothing."""

from __future__ import annotations

import json
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
        (["--tensorrt-version", "10.3.0"], "--tensorrt-version", "--write-tensorrt-cache"),
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


CACHE = ["--images", "10", "--write-tensorrt-cache"]


def test_the_ranges_as_a_tensorrt_cache(args: list[str], tmp_path: Path, capsys: Capture) -> None:
    from calibration.table import RangeTable
    from calibration.tensorrt_cache import read_tensorrt_cache
    from deploy_tools.artifacts import read_manifest, sha256_of_file

    out = tmp_path / "out"
    assert main([*args, *CACHE, "--tensorrt-version", "10.0.1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    cache, ranges = out / "calibration" / "tensorrt.cache", out / "calibration" / "ranges.json"
    assert told == {"file": str(ranges), "tensorrt_cache": str(cache), "tensors": 4}
    version, scales = read_tensorrt_cache(cache)
    assert version == "10.0.1"
    assert sorted(scales) == ["a", "a/relu", "c", "c/relu", "flat", "input"]
    table = RangeTable.load(ranges)
    for name in table.tensors:
        assert scales[name] == np.float32(table.range_of(name, "s8")[1] / 127)
    kept = read_manifest(out)["tensorrt-cache"]
    assert (kept.file, kept.sha256) == ("calibration/tensorrt.cache", sha256_of_file(cache))
    assert kept.parents == {"ranges": sha256_of_file(ranges)}
    # Another version of TensorRT later, from the statistics that are there.
    assert main([*args, *CACHE, "--tensorrt-version", "10.3.0.30"]) == 0
    assert capsys.readouterr().out.endswith(f"{ranges} and {cache} written.\n")
    assert read_tensorrt_cache(cache) == ("10.3.0", scales)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([], "--write-tensorrt-cache needs --tensorrt-version"),
        (["--tensorrt-version", "11.0.0"], "removed with TensorRT 11"),
        (["--tensorrt-version", "10.3"], "major.minor.patch"),
        (["--tensorrt-version", "8.6.1"], "TensorRT 8.6.1 misreads ONNX files of opset 20"),
    ],
)
def test_a_cache_needs_a_version_that_reads_it(
    given: list[str], reason: str, args: list[str], tmp_path: Path, capsys: Capture
) -> None:
    assert main([*args, *CACHE, *given]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_tensor_name_that_no_cache_can_hold_is_refused_before_the_images_run(
    args: list[str], tmp_path: Path, capsys: Capture
) -> None:
    proto = two_gemms()
    for node in proto.graph.node:
        node.input[:] = [name.replace("flat", "a: flat") for name in node.input]
        node.output[:] = [name.replace("flat", "a: flat") for name in node.output]
    saved(proto, tmp_path / "m.onnx")
    assert main([*args, *CACHE, "--tensorrt-version", "10.3.0"]) == 2
    assert "'a: flat' cannot be written" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*args, "--images", "10"]) == 0
