"""A small real network in ONNX, and images for it, for tests of arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy_tools.data.source import ArraySource
from deploy_tools.data.spec import InputSpec


@pytest.fixture(scope="session")
def spec() -> InputSpec:
    """The input spec of the small model."""
    return InputSpec(size=(8, 8), mean=(0.4,), std=(0.2,))


@pytest.fixture(scope="session")
def images() -> ArraySource:
    """60 grey images of 8x8, three classes of 30, 20 and 10."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [30, 20, 10])
    pixels = rng.integers(0, 256, (60, 8, 8), dtype=np.uint8)
    return ArraySource("noise", "train", pixels, labels, ("a", "b", "c"))


def _write_small_model(path: Path, batch: int | str = "batch", bias: float = 0.0) -> Path:
    """Write Conv -> Relu -> Conv -> mean to `path`; tensors conv, relu, deep, pooled."""
    rng = np.random.default_rng(1)
    weights = {
        "w1": rng.normal(size=(4, 1, 3, 3)).astype(np.float32),
        "b1": np.full(4, bias, np.float32),
        "w2": rng.normal(size=(2, 4, 3, 3)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["input", "w1", "b1"], ["conv"]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("Conv", ["relu", "w2"], ["deep"]),
        helper.make_node("GlobalAveragePool", ["deep"], ["pooled"]),
        helper.make_node("Shape", ["pooled"], ["shape"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 1, 8, 8])],
        [helper.make_tensor_value_info("pooled", TensorProto.FLOAT, [batch, 2, 1, 1])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
        value_info=[helper.make_tensor_value_info("shape", TensorProto.INT64, [4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, str(path))
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model with a dynamic batch."""
    return _write_small_model(tmp_path_factory.mktemp("model") / "small.onnx")


@pytest.fixture
def small_model(tmp_path: Path) -> Callable[..., Path]:
    """Write the small model with another batch or bias: small_model(batch=4)."""
    return lambda **changes: _write_small_model(tmp_path / "changed.onnx", **changes)
