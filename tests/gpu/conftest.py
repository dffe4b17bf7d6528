"""A GPU, a flavour of TensorRT that runs on it, and the demo ResNet-20 as three engines.

Run with `make gpu-test`. A test that has no GPU, or none that the flavour runs on, skips and
says so.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from deploy_tools.cli.main import main
from deploy_tools.data.source import ImageSource, batches
from deploy_tools.onnx_files import input_spec_of, load_onnx
from deploy_tools.runtimes.flavours import NAMES, Flavour, find_flavour, installed_flavours
from deploy_tools.runtimes.gpu import Gpu, find_gpu, why_no_gpu

# precision -> the ONNX file that its engine is built from, and what the engine runs in.
PRECISIONS = {
    "fp32": ("fp32.onnx", "fp32"),
    "fp16": ("fp16.onnx", "fp16"),
    "int8": ("int8-static-tensorrt-fp16.onnx", "int8+fp16"),
}


@pytest.fixture(scope="session")
def gpu() -> Gpu:
    """The GPU of this machine."""
    found = find_gpu()
    if found is None:
        pytest.skip(f"no GPU to use: {why_no_gpu()}")
    return found


@pytest.fixture(scope="session", params=NAMES)
def flavour(request: pytest.FixtureRequest, gpu: Gpu) -> Flavour:
    """Each flavour that is installed and runs on this GPU."""
    if request.param not in installed_flavours():
        pytest.skip(f"{request.param} is not installed")
    found = find_flavour(request.param)
    if not found.runs_on(gpu.compute_capability):
        pytest.skip(
            f"{found.title} does not run on {gpu.name} (compute capability "
            f"{gpu.compute_capability})"
        )
    return found


@pytest.fixture(scope="session")
def onnx_files(tmp_path_factory: pytest.TempPathFactory, demo_onnx: Path) -> Path:
    """A folder with the FP32, FP16 and INT8 file of the demo model, made by the commands."""
    out = tmp_path_factory.mktemp("gpu")
    model = out / "fp32.onnx"
    model.write_bytes(demo_onnx.read_bytes())
    ranges = str(out / "calibration" / "ranges.json")
    for command in (
        ["cast", "fp16", str(model)],
        ["calibrate", str(model), "--source", "fashion-mnist", "--images", "256", "-q"],
        ["quantize", "static", str(model), "--ranges", ranges, "--target", "tensorrt"],
        ["cast", "fp16", str(out / "int8-static-tensorrt.onnx")],
    ):
        assert main([*command, "-o", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def engines(
    tmp_path_factory: pytest.TempPathFactory, onnx_files: Path, flavour: Flavour
) -> dict[str, Path]:
    """The engine of each precision, for batches of 1 to 32, built here."""
    out = tmp_path_factory.mktemp(flavour.name)
    for file, _ in PRECISIONS.values():
        model = str(onnx_files / file)
        options = ["--flavour", flavour.name, "--batch", "1:8:32"]
        assert main(["build", model, *options, "-q", "-o", str(out)]) == 0
    return {name: out / Path(file).with_suffix(".engine") for name, (file, _) in PRECISIONS.items()}


@pytest.fixture(scope="session")
def images(demo_onnx: Path, fashion_test: ImageSource) -> NDArray[np.float32]:
    """512 preprocessed test images."""
    spec = input_spec_of(load_onnx(demo_onnx), demo_onnx)
    return next(batches(fashion_test, spec, 512))[0]
