"""onnxruntime's own quantizer as a peer: the grid that each call asks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.peers import onnxruntime_static
from benchmarks.peers.base import Job
from deploy_tools.data.source import ArraySource
from deploy_tools.data.spec import InputSpec

SPEC = InputSpec(size=(8, 8), mean=(0.4,), std=(0.2,))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Conv -> Conv: negative and positive activations, uneven around 0."""
    rng = np.random.default_rng(1)
    weights = [
        numpy_helper.from_array(rng.normal(0.3, 1, (4, 1, 3, 3)).astype(np.float32), "w1"),
        numpy_helper.from_array(rng.normal(0.3, 1, (2, 4, 3, 3)).astype(np.float32), "w2"),
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input", "w1"], ["conv"]),
            helper.make_node("Conv", ["conv", "w2"], ["logits"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2, 4, 4])],
        weights,
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


class NoiseJob(Job):
    """Images made here, since the model is too."""

    def open(self) -> ArraySource:
        pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
        return ArraySource("noise", "train", pixels, np.zeros(6, np.int64), ("a", "b"))


@pytest.fixture
def job(model: Path) -> Job:
    return NoiseJob(model, SPEC, "noise", None, "train", (0, 2, 4))


@pytest.mark.parametrize(
    ("grid", "kind"),
    [("u8", TensorProto.UINT8), ("s8", TensorProto.INT8), ("s8-symmetric", TensorProto.INT8)],
)
def test_the_grid_of_the_activations(grid: str, kind: int, job: Job, tmp_path: Path) -> None:
    path = tmp_path / "q.onnx"
    onnxruntime_static.quantize(job, path, "MinMax", grid)
    proto = onnx.load(str(path))
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    points = [
        stored[node.input[2]] for node in proto.graph.node if node.op_type == "QuantizeLinear"
    ]
    assert len(points) == 3
    assert {point.data_type for point in points} == {kind}
    assert any(numpy_helper.to_array(point).any() for point in points) is (grid != "s8-symmetric")
    assert {w.data_type for w in _weights(proto)} == {TensorProto.INT8}


def _weights(proto: onnx.ModelProto) -> list[TensorProto]:
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    dequantized = [
        stored[node.input[0]]
        for node in proto.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in stored
    ]
    return [tensor for tensor in dequantized if len(tensor.dims) == 4]


@pytest.mark.parametrize(("per_channel", "scales"), [(True, [4, 2]), (False, [1, 1])])
def test_the_scales_of_the_weights(
    per_channel: bool, scales: list[int], job: Job, tmp_path: Path
) -> None:
    path = tmp_path / "q.onnx"
    onnxruntime_static.quantize(job, path, per_channel=per_channel)
    proto = onnx.load(str(path))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    names = {tensor.name for tensor in _weights(proto)}
    found = [stored[node.input[1]].size for node in proto.graph.node if node.input[0] in names]
    assert found == scales


def test_every_calibrator_writes_a_file(job: Job, tmp_path: Path) -> None:
    made = []
    for method in onnxruntime_static.METHODS:
        onnxruntime_static.quantize(job, tmp_path / f"{method}.onnx", method)
        made.append((tmp_path / f"{method}.onnx").read_bytes())
    assert len(set(made)) >= 2
