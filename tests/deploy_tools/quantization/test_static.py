"""Static INT8: where the Q/DQ nodes lie, what they hold, and what the file computes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx_samples import saved, two_gemms

from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import UserError
from deploy_tools.export import onnx_from_module
from deploy_tools.models import new_module
from deploy_tools.quantization.static import StaticConfig, activation_tensors, qdq_from_onnx
from deploy_tools.runtimes import open_session

Images = NDArray[np.float32]


class Graph:
    """A quantized file, easy to ask."""

    def __init__(self, path: Path) -> None:
        self.proto = onnx.load(str(path))
        self.nodes = list(self.proto.graph.node)
        self.values = {t.name: numpy_helper.to_array(t) for t in self.proto.graph.initializer}
        self.producer = {tensor: node for node in self.nodes for tensor in node.output}
        self.quantizers = {n.input[0]: n for n in self.nodes if n.op_type == "QuantizeLinear"}

    def layers(self) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type in ("Conv", "Gemm")]

    def node(self, name: str) -> onnx.NodeProto:
        return next(node for node in self.nodes if node.name == name)

    def dequantized(self, tensor: str) -> onnx.NodeProto | None:
        """Return the DequantizeLinear that makes a tensor."""
        node = self.producer.get(tensor)
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def parameters(self, node: onnx.NodeProto) -> tuple[Any, Any]:
        return self.values[node.input[1]], self.values[node.input[2]]


def sqnr_db(model: Path, quantized: Path, images: Images) -> float:
    """Signal to quantization noise of the logits, in dB."""
    expected, found = (open_session(path).run(images)[0] for path in (model, quantized))
    return float(10 * np.log10(np.square(expected).sum() / np.square(expected - found).sum()))


def check_structure(graph: Graph, activations: int, weight_limit: int = 127) -> None:
    """Every layer has int8 weights, an int32 bias and quantized inputs; no Relu is left."""
    assert graph.layers()
    for layer in graph.layers():
        source = graph.dequantized(layer.input[0])
        assert source is not None, f"{layer.name} reads a float activation"
        assert graph.producer[source.input[0]].op_type == "QuantizeLinear"
        assert graph.proto.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
        _, zero = graph.parameters(source)
        assert zero.dtype == np.dtype("uint8" if activations == TensorProto.UINT8 else "int8")
        weight = graph.dequantized(layer.input[1])
        assert weight is not None, f"{layer.name} has float weights"
        scale, zero = graph.parameters(weight)
        stored = graph.values[weight.input[0]]
        assert stored.dtype == np.int8
        assert np.abs(stored.astype(int)).max() <= weight_limit
        assert not zero.any()
        assert (scale > 0).all()
        if len(layer.input) > 2:
            bias = graph.dequantized(layer.input[2])
            assert bias is not None, f"{layer.name} has a float bias"
            assert graph.values[bias.input[0]].dtype == np.int32
            expected = graph.parameters(source)[0] * scale
            np.testing.assert_allclose(graph.values[bias.input[1]], expected, rtol=1e-6)
    relus = [node.name for node in graph.nodes if node.op_type in ("Relu", "Clip")]
    assert not relus
    logits = graph.producer[graph.proto.graph.output[0].name]
    assert logits.op_type == "Gemm"


def check_residuals(graph: Graph, blocks: int, inputs: int) -> None:
    """So many inputs of every residual Add are quantized."""
    adds = [node for node in graph.nodes if node.op_type == "Add"]
    assert len(adds) == blocks
    for node in adds:
        assert sum(graph.dequantized(tensor) is not None for tensor in node.input) == inputs


def inner(model: Path) -> set[str]:
    """Return the tensors between a layer (or Add) and the Relu that alone reads it."""
    nodes = onnx.load(str(model)).graph.node
    return {node.input[0] for node in nodes if node.op_type == "Relu"}


@pytest.mark.parametrize(
    ("target", "activations", "limit", "least_db"),
    [
        ("ort-cpu", TensorProto.UINT8, 127, 30),
        ("openvino", TensorProto.UINT8, 127, 30),
        ("arm", TensorProto.INT8, 127, 30),
        ("x86-no-vnni", TensorProto.UINT8, 64, 28),
    ],
)
def test_each_target_on_the_demo(
    demo_onnx: Path, demo_ranges: Any, demo_images: Images, tmp_path: Path,
    target: str, activations: int, limit: int, least_db: float,
) -> None:  # fmt: skip
    path = tmp_path / "q.onnx"
    summary = qdq_from_onnx(demo_onnx, demo_ranges, path, StaticConfig(target))
    graph = Graph(path)
    check_structure(graph, activations, limit)
    check_residuals(graph, 9, inputs=1 if target == "openvino" else 2)
    assert not inner(demo_onnx) & set(graph.quantizers)
    assert (summary.quantized_layers, summary.quantized_share) == (22, 1.0)
    assert set(summary.activations) == set(graph.quantizers)
    metadata = {prop.key: prop.value for prop in graph.proto.metadata_props}
    assert metadata["deploy_tools.target"] == target
    assert "deploy_tools.input_spec" in metadata
    assert sqnr_db(demo_onnx, path, demo_images) > least_db


@pytest.mark.parametrize(("target", "low_code"), [("ort-cpu", 0), ("arm", -128)])
def test_scales_and_zero_points_are_what_the_ranges_imply(
    demo_onnx: Path, demo_ranges: Any, tmp_path: Path, target: str, low_code: int
) -> None:
    qdq_from_onnx(demo_onnx, demo_ranges, tmp_path / "q.onnx", StaticConfig(target))
    graph = Graph(tmp_path / "q.onnx")
    assert len(graph.quantizers) > 20
    for tensor, node in graph.quantizers.items():
        low, high = demo_ranges.range_of(tensor, "u8")
        scale, zero = graph.parameters(node)
        expected = (high - low) / 255
        assert float(scale) == pytest.approx(expected, rel=1e-6)
        assert int(zero) == round(low_code - low / expected)


@pytest.mark.parametrize(
    ("per_channel", "target", "levels"), [(True, "ort-cpu", 127), (False, "ort-cpu", 127), (True, "x86-no-vnni", 64)]
)  # fmt: skip
def test_weights_are_rounded_to_their_channels_or_tensors_scale(
    demo_onnx: Path, demo_ranges: Any, tmp_path: Path, per_channel: bool, target: str, levels: int
) -> None:
    original = {
        t.name: numpy_helper.to_array(t) for t in onnx.load(str(demo_onnx)).graph.initializer
    }
    path = tmp_path / "q.onnx"
    config = StaticConfig(target, per_channel)
    summary = qdq_from_onnx(demo_onnx, demo_ranges, path, config)
    assert {layer.per_channel for layer in summary.layers} == {per_channel}
    graph = Graph(path)
    for layer in graph.layers():
        weight = graph.dequantized(layer.input[1])
        assert weight is not None
        scale, _ = graph.parameters(weight)
        stored = graph.values[weight.input[0]].astype(np.float64)
        before = original[f"{layer.name}.weight"].astype(np.float64)
        assert scale.size == (before.shape[0] if per_channel else 1)
        spread = np.abs(before.reshape(before.shape[0] if per_channel else 1, -1)).max(1)
        np.testing.assert_allclose(np.atleast_1d(scale), spread / levels, rtol=1e-5)
        shaped = scale.reshape(-1, *[1] * (before.ndim - 1)) if per_channel else scale
        # Half a step: rounding to the nearest level, and nothing clipped.
        assert np.abs(stored * shaped - before).max() <= 0.5001 * scale.max()


def test_every_batch_size_gives_the_same_logits(
    demo_onnx: Path, demo_ranges: Any, demo_images: Images, tmp_path: Path
) -> None:
    qdq_from_onnx(demo_onnx, demo_ranges, tmp_path / "q.onnx")
    session = open_session(tmp_path / "q.onnx")
    whole = session.run(demo_images[:21])[0]
    assert whole.dtype == np.float32
    for batch in (1, 5, 21):
        parts = [
            session.run(demo_images[i : i + batch])[0] for i in range(0, 21 - 21 % batch, batch)
        ]
        found = np.concatenate(parts)
        np.testing.assert_allclose(found, whole[: len(found)], atol=1e-4)


ARCHITECTURES = [("resnet18", 64, 8), ("resnet50", 64, 16), ("resnet20-cifar-a", 16, 9)]


@pytest.mark.parametrize(("arch", "size", "blocks"), ARCHITECTURES)
def test_structure_of_other_architectures(
    tmp_path: Path, seen_ranges: Callable[..., Any], arch: str, size: int, blocks: int
) -> None:
    spec = InputSpec(size=(size, size), mean=(0.5,) * 3, std=(0.5,) * 3)
    torch.manual_seed(0)
    model, path = tmp_path / "m.onnx", tmp_path / "q.onnx"
    onnx_from_module(new_module(arch, 7), spec, model)
    images = np.random.default_rng(0).normal(size=spec.shape(4)).astype(np.float32)
    ranges = seen_ranges(model, images)
    expected = {"resnet18": 21, "resnet50": 54, "resnet20-cifar-a": 20}[arch]
    for target, kind in (("ort-cpu", TensorProto.UINT8), ("arm", TensorProto.INT8)):
        summary = qdq_from_onnx(model, ranges, path, StaticConfig(target))
        assert len(summary.layers) == summary.quantized_layers == expected
        graph = Graph(path)
        check_structure(graph, kind)
        check_residuals(graph, blocks, inputs=1 if target == "openvino" else 2)
        assert not inner(model) & set(graph.quantizers)
        assert sqnr_db(model, path, images) > 20


@pytest.mark.parametrize(
    "exclude",
    [
        ("conv1",),
        ("linear",),
        ("layer1.0.conv1", "layer1.0.conv2"),
        ("layer1.0.conv1", "layer1.0.conv1/relu", "layer1.0.conv2"),
        ("layer2.0.conv2/add", "layer2.0.conv2/relu"),
    ],
)
@pytest.mark.parametrize("target", ["ort-cpu", "arm"])
def test_excluded_nodes_stay_in_float(
    demo_onnx: Path, demo_ranges: Any, demo_images: Images, tmp_path: Path,
    exclude: tuple[str, ...], target: str,
) -> None:  # fmt: skip
    path = tmp_path / "q.onnx"
    summary = qdq_from_onnx(demo_onnx, demo_ranges, path, StaticConfig(target, exclude=exclude))
    graph = Graph(path)
    layers = [node for node in graph.layers() if node.name in exclude]
    for node in layers:
        assert graph.values[node.input[1]].dtype == np.float32
        assert len(node.input) < 3 or graph.values[node.input[2]].dtype == np.float32
    floats = [layer.layer for layer in summary.layers if not layer.quantized]
    assert sorted(floats) == sorted(node.name for node in layers)
    assert sqnr_db(demo_onnx, path, demo_images) > 30


def test_unknown_and_inseparable_excludes(
    demo_onnx: Path, demo_ranges: Any, tmp_path: Path
) -> None:
    for exclude, words in (
        ("layer1.0.conv9", 'Did you mean "layer1.0.conv'),
        ("conv1/relu", '"conv1/relu" is one kernel with "conv1"'),
    ):
        with pytest.raises(UserError, match=words):
            qdq_from_onnx(
                demo_onnx, demo_ranges, tmp_path / "q.onnx", StaticConfig(exclude=(exclude,))
            )
    assert not any(tmp_path.iterdir())


def test_quantized_files_and_unknown_targets_are_refused(
    demo_onnx: Path, demo_ranges: Any, tmp_path: Path
) -> None:
    path = tmp_path / "q.onnx"
    with pytest.raises(UserError, match='Did you mean "ort-cpu"'):
        qdq_from_onnx(demo_onnx, demo_ranges, path, StaticConfig("ort-cpuu"))
    qdq_from_onnx(demo_onnx, demo_ranges, path)
    with pytest.raises(UserError, match="quantized already") as caught:
        qdq_from_onnx(path, demo_ranges, tmp_path / "twice.onnx")
    assert str(path) in caught.value.message
    assert not (tmp_path / "twice.onnx").exists()


def test_a_fixed_batch_is_refused(demo_ranges: Any, tmp_path: Path) -> None:
    model = saved(two_gemms(batch=3), tmp_path / "m.onnx")
    with pytest.raises(UserError, match="takes only batches of 3"):
        qdq_from_onnx(model, demo_ranges, tmp_path / "q.onnx")


SCRIPT = """
import sys
from pathlib import Path
from deploy_tools.quantization.static import qdq_from_onnx

class Ranges:
    def range_of(self, tensor, grid):
        return (-1.0, 2.0)

qdq_from_onnx(Path(sys.argv[1]), Ranges(), Path(sys.argv[2]))
"""


def test_the_same_inputs_give_the_same_bytes(
    demo_onnx: Path, demo_ranges: Any, tmp_path: Path
) -> None:
    for name in "ab":
        qdq_from_onnx(demo_onnx, demo_ranges, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    for seed in ("1", "2"):  # in other processes too, where sets have another order
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(demo_onnx), str(tmp_path / seed)],
            env={**os.environ, "PYTHONHASHSEED": seed}, check=True,
        )  # fmt: skip
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


@pytest.mark.parametrize(("target", "zero"), [("ort-cpu", 0), ("arm", -128)])
def test_a_relu_is_kept_in_effect_whatever_its_range(
    tmp_path: Path, seen_ranges: Callable[..., Any], target: str, zero: int
) -> None:
    # The Relu is dropped because quantizing clamps at the zero-point; a channel that was never
    # above 0 during calibration must still be clamped below.
    model = saved(two_gemms(), tmp_path / "m.onnx")
    images = np.random.default_rng(1).normal(size=(64, 1, 4, 4)).astype(np.float32)
    ranges = seen_ranges(model, images)
    for pair in ((0.0, 0.0), (-2.0, 2.0)):
        ranges.ranges["a/relu"] = pair
        qdq_from_onnx(model, ranges, tmp_path / "q.onnx", StaticConfig(target))
        graph = Graph(tmp_path / "q.onnx")
        scale, found = graph.parameters(graph.quantizers["a/relu"])
        assert int(found) == zero
        assert float(scale) == pytest.approx((pair[1] or 255.0) / 255)


def test_logits_stay_float_where_another_gemm_is_inside(
    tmp_path: Path, seen_ranges: Callable[..., Any]
) -> None:
    model = saved(two_gemms(), tmp_path / "m.onnx")
    images = np.random.default_rng(1).normal(size=(64, 1, 4, 4)).astype(np.float32)
    path = tmp_path / "q.onnx"
    summary = qdq_from_onnx(model, seen_ranges(model, images), path)
    graph = Graph(path)
    check_structure(graph, TensorProto.UINT8)
    assert summary.activations == ("input", "c/relu", "flat", "a/relu")
    assert sqnr_db(model, path, images) > 30


def test_what_to_calibrate(tmp_path: Path) -> None:
    assert activation_tensors(two_gemms()) == ("input", "c/relu", "flat", "a/relu")


def test_a_tensor_that_more_than_a_relu_reads_is_calibrated() -> None:
    proto = two_gemms()
    proto.graph.output.append(onnx.helper.make_tensor_value_info("other", TensorProto.FLOAT, None))
    proto.graph.node.add(op_type="Neg", input=["c"], output=["other"], name="neg")
    assert "c" in activation_tensors(proto)
