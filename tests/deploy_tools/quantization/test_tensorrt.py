"""The Q/DQ layout of TensorRT: where pairs lie, and that nothing in it can be misread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx_samples import saved, two_gemms

from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import UserError
from deploy_tools.export import onnx_from_module
from deploy_tools.models import new_module
from deploy_tools.quantization.residual import main_branches
from deploy_tools.quantization.static import StaticConfig, qdq_from_onnx
from deploy_tools.runtimes import RuntimeConfig, open_session

TENSORRT = StaticConfig("tensorrt")
PAIR = ("QuantizeLinear", "DequantizeLinear")


class Graph:
    def __init__(self, path: Path) -> None:
        self.proto = onnx.load(str(path))
        self.nodes = list(self.proto.graph.node)
        self.values = {t.name: numpy_helper.to_array(t) for t in self.proto.graph.initializer}
        self.producer = {tensor: node for node in self.nodes for tensor in node.output}

    def of(self, *kinds: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type in kinds]

    def pair(self, tensor: str) -> str:
        """Return the float tensor in front of the Q/DQ pair that makes a tensor, or ""."""
        last = self.producer.get(tensor)
        if last is None or last.op_type != "DequantizeLinear" or last.input[0] in self.values:
            return ""
        return str(self.producer[last.input[0]].input[0])


def check_rules(path: Path, model: Path, floats: tuple[str, ...] = ()) -> Graph:
    """Hold a file to every rule of the layout."""
    graph, original = Graph(path), onnx.load(str(model))
    for node in graph.of(*PAIR):
        zero = graph.values[node.input[2]]
        assert zero.dtype == np.int8, f"{node.name} has a {zero.dtype} zero-point"
        assert not zero.any()
        scale = graph.values[node.input[1]]
        assert scale.dtype == np.float32
        assert (scale > 0).all()
    for node in graph.of("QuantizeLinear"):
        assert graph.values[node.input[1]].ndim == 0, "activations have one scale a tensor"
    for layer in graph.of("Conv", "Gemm"):
        weight = graph.producer.get(layer.input[1])
        if layer.name in floats:
            assert weight is None
            continue
        assert graph.pair(layer.input[0]), f"{layer.name} reads a float activation"
        assert weight is not None
        assert graph.values[weight.input[0]].dtype == np.int8
        assert graph.values[weight.input[1]].shape == (layer_outputs(graph, weight),)
        assert all(bias in graph.values for bias in layer.input[2:]), "a bias has no Q/DQ"
    # Outputs: a Q node reads only what a layer, an Add's shortcut or a pool needs quantized.
    mains = main_branches(original)
    for add in graph.of("Add"):
        main = mains[add.name]
        assert main in add.input, f"{add.name} gets its main branch quantized"
        (shortcut,) = [tensor for tensor in add.input if tensor != main]
        assert graph.pair(shortcut), f"{add.name} gets its shortcut in float"
    assert len(graph.of("Relu")) == sum(n.op_type == "Relu" for n in original.graph.node)
    assert graph.producer["logits"].op_type == "Gemm"
    return graph


def layer_outputs(graph: Graph, weight: onnx.NodeProto) -> int:
    return int(graph.values[weight.input[0]].shape[0])


def pairs(graph: Graph) -> int:
    return len(graph.of("DequantizeLinear"))


def test_on_the_demo(
    demo_onnx: Path, demo_ranges: Any, demo_images: NDArray[np.float32], tmp_path: Path
) -> None:
    path = tmp_path / "q.onnx"
    summary = qdq_from_onnx(demo_onnx, demo_ranges, path, TENSORRT)
    check_rules(path, demo_onnx)
    assert (summary.quantized_layers, summary.quantized_share) == (22, 1.0)
    config = RuntimeConfig(fusions=False)
    expected = open_session(demo_onnx).run(demo_images)[0]
    found = open_session(path, config).run(demo_images)[0]
    error = 10 * np.log10(np.square(expected).sum() / np.square(expected - found).sum())
    assert error > 27
    metadata = {prop.key: prop.value for prop in onnx.load(str(path)).metadata_props}
    assert metadata["deploy_tools.target"] == "tensorrt"
    assert metadata["deploy_tools.precision"] == "int8"


@pytest.mark.parametrize(
    ("arch", "size", "expected"),
    # 43 pairs on ResNet-18: what NVIDIA's own optimizer makes.
    [("resnet18", 64, 43), ("resnet50", 64, 109), ("resnet20-cifar-a", 16, 42)],
)
def test_other_architectures(
    tmp_path: Path, seen_ranges: Callable[..., Any], arch: str, size: int, expected: int
) -> None:
    spec = InputSpec(size=(size, size), mean=(0.5,) * 3, std=(0.5,) * 3)
    torch.manual_seed(0)
    model, path = tmp_path / "m.onnx", tmp_path / "q.onnx"
    onnx_from_module(new_module(arch, 7), spec, model)
    images = np.random.default_rng(0).normal(size=spec.shape(4)).astype(np.float32)
    ranges = seen_ranges(model, images)
    for node in onnx.load(str(model)).graph.node:
        if node.op_type == "MaxPool":  # as a range method other than min-max may choose
            ranges.ranges[node.output[0]] = (0.0, 0.9 * ranges.ranges[node.output[0]][1])
    qdq_from_onnx(model, ranges, path, TENSORRT)
    graph = check_rules(path, model)
    assert pairs(graph) == expected
    for pool in graph.of("MaxPool"):
        before = graph.producer[graph.producer[pool.input[0]].input[0]]
        (after,) = [n for n in graph.of("QuantizeLinear") if n.input[0] == pool.output[0]]
        assert graph.values[before.input[1]] == graph.values[after.input[1]]
    bigger = open_session(path).run(np.concatenate([images, images]))[0]
    np.testing.assert_allclose(bigger[:4], open_session(path).run(images)[0], atol=1e-4)


@pytest.mark.parametrize(
    ("config", "floats"),
    [
        (StaticConfig("tensorrt", first_conv=False), ("conv1",)),
        (StaticConfig("tensorrt", last_gemm=False), ("linear",)),
        (StaticConfig("tensorrt", exclude=("layer1.0.conv1",), last_gemm=False), ("layer1.0.conv1", "linear")),
    ],
)  # fmt: skip
def test_layers_left_in_float(
    demo_onnx: Path, demo_ranges: Any, tmp_path: Path, config: StaticConfig, floats: tuple[str, ...]
) -> None:
    path = tmp_path / "q.onnx"
    summary = qdq_from_onnx(demo_onnx, demo_ranges, path, config)
    check_rules(path, demo_onnx, floats)
    assert tuple(layer.layer for layer in summary.layers if not layer.quantized) == floats
    assert ("input" in summary.activations) == ("conv1" not in floats)


def test_first_and_last_may_stay_in_float_for_the_cpu_too(
    demo_onnx: Path, demo_ranges: Any, tmp_path: Path
) -> None:
    config = StaticConfig("ort-cpu", first_conv=False, last_gemm=False)
    summary = qdq_from_onnx(demo_onnx, demo_ranges, tmp_path / "q.onnx", config)
    floats = [layer.layer for layer in summary.layers if not layer.quantized]
    assert floats == ["conv1", "linear"]


def test_scales_are_amax_over_127(demo_onnx: Path, demo_ranges: Any, tmp_path: Path) -> None:
    path = tmp_path / "q.onnx"
    qdq_from_onnx(demo_onnx, demo_ranges, path, TENSORRT)
    graph = Graph(path)
    for node in graph.of("QuantizeLinear"):
        low, high = demo_ranges.range_of(node.input[0], "s8")
        expected = max(-low, high) / 127
        assert float(graph.values[node.input[1]]) == pytest.approx(expected, rel=1e-6)


def test_a_tensor_that_was_always_zero(tmp_path: Path, seen_ranges: Callable[..., Any]) -> None:
    model = saved(two_gemms(), tmp_path / "m.onnx")
    images = np.random.default_rng(1).normal(size=(64, 1, 4, 4)).astype(np.float32)
    ranges = seen_ranges(model, images)
    ranges.ranges["a/relu"] = (0.0, 0.0)
    qdq_from_onnx(model, ranges, tmp_path / "q.onnx", TENSORRT)
    graph = Graph(tmp_path / "q.onnx")
    (node,) = [n for n in graph.of("QuantizeLinear") if n.input[0] == "a/relu"]
    assert float(graph.values[node.input[1]]) == 1.0


def test_an_add_of_a_constant_is_left_alone(
    tmp_path: Path, seen_ranges: Callable[..., Any]
) -> None:
    proto = two_gemms()
    (gemm,) = [n for n in proto.graph.node if "logits" in n.output]
    gemm.output[0] = "before"
    proto.graph.initializer.append(
        numpy_helper.from_array(np.ones(1, np.float32), "one"),
    )
    proto.graph.node.append(helper.make_node("Add", ["before", "one"], ["logits"], name="plus"))
    model = saved(proto, tmp_path / "m.onnx")
    images = np.random.default_rng(1).normal(size=(8, 1, 4, 4)).astype(np.float32)
    qdq_from_onnx(model, seen_ranges(model, images), tmp_path / "q.onnx", TENSORRT)
    (add,) = Graph(tmp_path / "q.onnx").of("Add")
    assert list(add.input) == ["before", "one"]


@pytest.mark.parametrize(
    ("exclude", "activations"),
    # The shortcut of the first Add is the input of a convolution: its pair stays for that one.
    [("layer1.0.conv2/add", 22), ("layer2.0.conv2/add", 21)],
)
def test_an_excluded_add_gets_both_inputs_in_float(
    demo_onnx: Path, demo_ranges: Any, tmp_path: Path, exclude: str, activations: int
) -> None:
    path = tmp_path / "q.onnx"
    config = StaticConfig("tensorrt", exclude=(exclude,))
    summary = qdq_from_onnx(demo_onnx, demo_ranges, path, config)
    graph = Graph(path)
    (add,) = [node for node in graph.of("Add") if node.name == exclude]
    assert not any(graph.pair(tensor) for tensor in add.input)
    assert len(summary.activations) == activations


def test_nothing_left_to_quantize_is_said(
    demo_onnx: Path, demo_ranges: Any, tmp_path: Path
) -> None:
    layers = [n.name for n in onnx.load(str(demo_onnx)).graph.node if n.op_type in ("Conv", "Gemm")]
    with pytest.raises(UserError, match="is left to quantize"):
        qdq_from_onnx(
            demo_onnx, demo_ranges, tmp_path / "q.onnx",
            StaticConfig("tensorrt", exclude=tuple(layers)),
        )  # fmt: skip
    assert not (tmp_path / "q.onnx").exists()


def test_a_model_without_a_gemm_cannot_leave_it_in_float(tmp_path: Path) -> None:
    proto = two_gemms()
    for node in proto.graph.node:
        if node.op_type == "Gemm":
            node.op_type = "Conv"
    with pytest.raises(UserError, match="no Gemm or MatMul to leave in float"):
        StaticConfig("tensorrt", last_gemm=False).nodes_in_float(proto)
