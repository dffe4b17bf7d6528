"""The summary tells what is stored, not what was asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_samples import saved, two_gemms

from deploy_tools.quantization.static import StaticConfig, qdq_from_onnx
from deploy_tools.quantization.summary import describe_quantization


def test_a_float_file() -> None:
    summary = describe_quantization(two_gemms())
    rows = [(x.layer, x.op, x.shape, x.dtype, x.size_bytes) for x in summary.layers]
    assert rows == [
        ("c", "Conv", (3, 1, 3, 3), "float32", 108),
        ("a", "Gemm", (8, 48), "float32", 1536),
        ("b", "Gemm", (5, 8), "float32", 160),
    ]
    assert (summary.quantized_layers, summary.quantized_share) == (0, 0.0)
    assert summary.activations == ()
    assert "0 of 3 layers quantized, 0.0% of the weights; 0 activations" in str(summary)


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_partly_quantized_file(
    tmp_path: Path, seen_ranges: Callable[..., Any], per_channel: bool
) -> None:
    model = saved(two_gemms(), tmp_path / "m.onnx")
    images = np.random.default_rng(0).normal(size=(8, 1, 4, 4)).astype(np.float32)
    config = StaticConfig(per_channel=per_channel, exclude=("a",))
    path = tmp_path / "q.onnx"
    summary = qdq_from_onnx(model, seen_ranges(model, images), path, config)
    assert describe_quantization(onnx.load(str(path))) == summary
    rows = [(x.layer, x.dtype, x.size_bytes, x.per_channel) for x in summary.layers]
    assert rows == [
        ("c", "int8", 27, per_channel), ("a", "float32", 1536, False), ("b", "int8", 40, per_channel),
    ]  # fmt: skip
    # Weights: 27 of the Conv, 384 and 40 of the Gemms.
    assert summary.quantized_share == pytest.approx((27 + 40) / (27 + 384 + 40))
    assert summary.to_dict()["float_layers"] == ["a"]
    assert summary.to_dict()["quantized_layers"] == 2
    stored = {
        t.name: numpy_helper.to_array(t).nbytes for t in onnx.load(str(path)).graph.initializer
    }
    assert stored["c.weight_quantized"] == 27
    assert stored["a.weight"] == 1536


@pytest.mark.parametrize(
    ("kind", "name", "width"),
    [(np.float16, "float16", 2), (np.float64, "double", 8)],
)
def test_other_stored_types(kind: Any, name: str, width: int) -> None:
    proto = two_gemms()
    tensor = proto.graph.initializer[0]
    tensor.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(tensor).astype(kind), tensor.name)
    )
    layer = describe_quantization(proto).layers[0]
    assert (layer.dtype, layer.size_bytes) == (name, 27 * width)


def test_bfloat16_is_named() -> None:
    proto = two_gemms()
    proto.graph.initializer[0].data_type = onnx.TensorProto.BFLOAT16
    assert describe_quantization(proto).layers[0].dtype == "bfloat16"
