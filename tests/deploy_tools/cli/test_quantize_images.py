"""quantize static and qat from images: the whole way of INT8 in one command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from deploy_tools.artifacts import read_manifest, sha256_of_file
from deploy_tools.cli.main import main
from deploy_tools.quantization.summary import describe_quantization
from deploy_tools.runtimes import open_session

Capture = pytest.CaptureFixture[str]
IMAGES = ["--source", "fashion-mnist", "--images", "128", "-q"]


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, demo_onnx: Path, fashion_train: object
) -> Path:
    out = tmp_path_factory.mktemp("images")
    assert main(["quantize", "static", str(demo_onnx), *IMAGES, "-o", str(out)]) == 0
    return out


def sqnr_db(reference: Path, path: Path, images: np.ndarray) -> float:
    wanted, found = (open_session(file).run(images)[0] for file in (reference, path))
    return float(10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum()))


@pytest.fixture(scope="module")
def images(fashion_test, demo_checkpoint: Path) -> np.ndarray:  # type: ignore[no-untyped-def]
    from deploy_tools.data.source import batches
    from deploy_tools.models.checkpoint import load_state, spec_from_metadata

    spec = spec_from_metadata(load_state(demo_checkpoint)[1])
    return next(batches(fashion_test, spec, 256))[0]


def test_one_command_corrects_calibrates_and_quantizes(
    folder: Path, demo_onnx: Path, images: np.ndarray
) -> None:
    path = folder / "int8-static-ort.onnx"
    summary = describe_quantization(onnx.load(path))
    assert summary.quantized_layers == len(summary.layers) == 22
    artifact = read_manifest(folder)["int8-static-ort.onnx"]
    assert artifact.sha256 == sha256_of_file(path)
    assert artifact.parents["fp32.onnx"] == sha256_of_file(demo_onnx)
    assert artifact.settings["ranges"] == "auto"
    noted = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert noted["deploy_tools.corrections"].startswith("equalize,gptq")
    assert sqnr_db(demo_onnx, path, images) > 32


def test_the_corrections_can_be_switched_off_and_make_it_better(
    folder: Path, demo_onnx: Path, images: np.ndarray, tmp_path: Path
) -> None:
    off = ["--no-equalize", "--rounding", "nearest", "--no-bias-correction", "--method", "minmax"]
    assert main(["quantize", "static", str(demo_onnx), *IMAGES, *off, "-o", str(tmp_path)]) == 0
    plain = tmp_path / "int8-static-ort.onnx"
    noted = {p.key for p in onnx.load(plain).metadata_props}
    assert "deploy_tools.corrections" not in noted
    better = sqnr_db(demo_onnx, folder / "int8-static-ort.onnx", images)
    assert better > sqnr_db(demo_onnx, plain, images) + 0.5


def test_a_second_call_makes_only_what_changed(
    folder: Path, demo_onnx: Path, capsys: Capture
) -> None:
    before = {p: p.stat().st_mtime_ns for p in (folder / "corrections").iterdir()}
    args = ["quantize", "static", str(demo_onnx), *IMAGES, "--target", "arm"]
    assert main([*args, "--json", "-o", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out)["file"].endswith("int8-static-arm.onnx")
    after = {p: p.stat().st_mtime_ns for p in (folder / "corrections").iterdir()}
    made = {p.name.split("-")[0] for p in after.keys() - before.keys()}
    assert made <= {"bias"}  # of another target
    assert all(after[path] == time for path, time in before.items())


def test_the_given_file_is_not_written_over(
    demo_onnx: Path, tmp_path: Path, fashion_train: object
) -> None:
    model = tmp_path / "fp32.onnx"
    model.write_bytes(demo_onnx.read_bytes())
    off = ["--no-equalize", "--rounding", "nearest", "--no-bias-correction", "--method", "minmax"]
    assert main(["quantize", "static", str(model), *IMAGES, *off, "-o", str(tmp_path)]) == 0
    assert model.read_bytes() == demo_onnx.read_bytes()


def test_qat_writes_its_file(demo_onnx: Path, folder: Path, images: np.ndarray) -> None:
    args = ["quantize", "qat", str(demo_onnx), *IMAGES, "--epochs", "1", "-o", str(folder)]
    assert main(args) == 0
    path = folder / "int8-qat-ort.onnx"
    assert describe_quantization(onnx.load(path)).quantized_layers == 22
    assert sqnr_db(demo_onnx, path, images) > 30
    assert read_manifest(folder)["int8-qat-ort.onnx"].sha256 == sha256_of_file(path)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--ranges"),
        (["--ranges", "r.json", "--images", "9"], "--images has no effect with --ranges"),
        (["--source", "fashion-mnist", "--images", "3"], "3 is not in the range"),
        (["--source", "fashion-mnist", "--float-branch", "conv1"], "no residual Add"),
    ],
)
def test_what_cannot_be_done_is_refused(
    args: list[str], message: str, demo_onnx: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["quantize", "static", str(demo_onnx), *args, "-o", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.onnx")) or "float-branch" in " ".join(args)


@pytest.mark.parametrize("verb", ["static", "qat"])
def test_a_quantized_file_is_refused_before_any_work(
    verb: str, folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    given = folder / "int8-static-ort.onnx"
    assert main(["quantize", verb, str(given), *IMAGES, "-o", str(tmp_path)]) == 2
    assert "is quantized already" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.onnx"))


def test_auto_ranges_from_the_command(
    demo_onnx: Path, tmp_path: Path, fashion_train: object
) -> None:
    args = ["calibrate", str(demo_onnx), "--source", "fashion-mnist", "--images", "16", "-q"]
    assert main([*args, "--method", "auto", "-o", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "calibration" / "ranges.json").read_text())["method"] == "auto"
