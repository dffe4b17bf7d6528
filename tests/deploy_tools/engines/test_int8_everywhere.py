"""Every convolution and the Gemm of our ResNets take INT8, in TensorRT for RTX's own build log.

Weights are random and ranges are the same everywhere: what matters here is the graph. Images are
smaller than 224, which changes no layer.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from deploy_tools.data.spec import InputSpec
from deploy_tools.engines.build import engine_from_onnx
from deploy_tools.engines.explain import Explanation, explain_layers
from deploy_tools.engines.hints import hints_of
from deploy_tools.export import onnx_from_module
from deploy_tools.models import new_module
from deploy_tools.quantization.cast import fp16_from_onnx
from deploy_tools.quantization.static import StaticConfig, qdq_from_onnx

# architecture: (side of the image, convolutions and Gemms, residual Adds). BatchNorm is folded
# by the exporter.
MODELS = {
    "resnet18": (64, 21, 8),
    "resnet34": (64, 37, 16),
    "resnet50": (64, 54, 16),
    "resnet20-cifar": (32, 22, 9),
    "resnet32-cifar": (32, 34, 15),
    "resnet20-cifar-a": (32, 20, 9),
}


class SameRange:
    """One range for every activation."""

    def range_of(self, tensor: str, grid: str) -> tuple[float, float]:
        return (-4.0, 4.0)


def quantized(fp32: Path, folder: Path, exclude: tuple[str, ...] = ()) -> Path:
    path = folder / "int8.onnx"
    qdq_from_onnx(fp32, SameRange(), path, StaticConfig("tensorrt", exclude=exclude))
    return path


@pytest.fixture(scope="module", params=MODELS)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """Each architecture, as a file of the tensorrt target; ResNet-20 is the one that ships."""
    pytest.importorskip("tensorrt_rtx")
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    if name == "resnet20-cifar":
        return name, quantized(request.getfixturevalue("demo_onnx"), folder)
    torch.manual_seed(0)
    spec = InputSpec(size=(MODELS[name][0],) * 2, mean=(0.5,) * 3, std=(0.25,) * 3)
    onnx_from_module(new_module(name, 10).eval(), spec, folder / "fp32.onnx")
    return name, quantized(folder / "fp32.onnx", folder)


def explained(model: Path) -> Explanation:
    sidecar = engine_from_onnx(model, model.with_suffix(".engine"))
    return explain_layers(sidecar.layers, onnx.load(str(model)))


@pytest.mark.parametrize("rest", ["fp32", "fp16"])
def test_every_layer_takes_int8(model: tuple[str, Path], rest: str) -> None:
    name, path = model
    if rest == "fp16":
        fp16_from_onnx(path, path.with_name("int8-fp16.onnx"))
        path = path.with_name("int8-fp16.onnx")
    _, products, adds = MODELS[name]
    found = explained(path)
    assert not [row for row in found.products if row.precision != "int8" or row.reason]
    assert found.summary == f"{products} of {products} convolutions and Gemms in INT8"
    assert sum(row.op == "Add" for row in found.rows) == adds
    assert {hint.rule for hint in hints_of(onnx.load(str(path)))} <= {"fp32-rest"}


def test_a_layer_left_out_is_seen(demo_onnx: Path, tmp_path: Path) -> None:
    """The same look at the log, where one convolution has no Q/DQ: it tells the difference."""
    pytest.importorskip("tensorrt_rtx")
    found = explained(quantized(demo_onnx, tmp_path, exclude=("layer2.1.conv2",)))
    assert [row.node for row in found.products if row.precision != "int8"] == ["layer2.1.conv2"]
    reason = next(row.reason for row in found.rows if row.node == "layer2.1.conv2")
    assert "neither its input nor its weights have Q/DQ" in reason
