"""Layers from logs and inspector output.

tests/data/tensorrt/layers-rtx-1.7.log: lines of a real build of the shipped ResNet-20 by
TensorRT for RTX 1.7.1. The others are in forms that were seen in public, with names of ours:
layers-10.log as in the logs of trtexec 10.0 and 10.5 that onnx-to-engine guides on GitHub show
(`--verbose --profilingVerbosity=detailed`), inspector-10.json as in NVIDIA/TensorRT issue 4020
(`--exportLayerInfo`, 10.1) and, for "N/A due to dynamic shapes", in several tools that read it;
inspector-11.json as NVIDIA's guide "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x"
describes the new fields.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy_tools.engine_files import EngineLayer
from deploy_tools.engines.layers import (
    is_weighted,
    layers_from_inspector,
    layers_from_log,
    precision_by_node,
)
from deploy_tools.errors import UserError

DATA = Path(__file__).resolve().parents[2] / "data" / "tensorrt"


def from_log(name: str) -> dict[str, EngineLayer]:
    return {layer.name: layer for layer in layers_from_log([(DATA / name).read_text("utf-8")])}


def from_json(name: str) -> dict[str, EngineLayer]:
    text = (DATA / name).read_text("utf-8")
    return {layer.name: layer for layer in layers_from_inspector(text)}


def test_a_log_of_tensorrt_for_rtx() -> None:
    layers = from_log("layers-rtx-1.7.log")
    assert len(layers) == 8
    conv = layers["layer1.0.conv1_U98_myl0_4"]
    assert conv.kind == "correlation"
    assert conv.precision == "int8"
    assert conv.inputs == (("__mye3738layer1.0.conv1_before_bias.1_17_myl0", "int8"),)
    assert conv.outputs == (("__myln_k_arg__bb1_18_myl0", "fp32"),)
    assert conv.onnx_nodes[0] == "layer1.0.conv1"
    assert len(conv.onnx_nodes) == 3
    sync = next(layer for layer in layers.values() if layer.kind == "shape_call")
    assert (sync.precision, sync.inputs, sync.outputs, sync.onnx_nodes) == ("unknown", (), (), ())
    # The kernel around a convolution computes in float, even where INT8 comes in too.
    around = next(layer for layer in layers.values() if len(layer.inputs) == 2)
    assert around.precision == "fp32"
    assert {dtype for _, dtype in around.inputs} == {"int8", "fp32"}
    assert layers["linear_myl0_50"].precision == "int8"


def test_the_multiplying_layer_decides_the_precision_of_a_node() -> None:
    layers = from_log("layers-rtx-1.7.log").values()
    # conv1 is named by the kernels before and behind it too, which compute in float.
    assert sum("conv1" in layer.onnx_nodes for layer in layers) == 3
    nodes = ("conv1", "layer1.0.conv1", "conv1/relu", "absent")
    assert precision_by_node(layers, nodes) == {
        "conv1": "int8",
        "layer1.0.conv1": "int8",
        "conv1/relu": "fp32",
        "absent": "unknown",
    }
    fused = [layer for layer in layers if layer.kind == "runtime_fusion"]
    assert precision_by_node(fused, ["linear"]) == {"linear": "fp32"}


def test_a_log_of_tensorrt_10() -> None:
    layers = from_log("layers-10.log")
    assert len(layers) == 4  # the fifth was cut short
    first = layers["conv1.weight + conv1.weight_QuantizeLinear + conv1"]
    assert first.precision == "int8"
    assert first.outputs == (("conv1/relu_QuantizeLinear_Output", "int8"),)
    assert first.onnx_nodes == ("conv1.weight_QuantizeLinear", "conv1", "conv1/relu")
    second = layers["layer1.0.conv1 + layer1.0.conv1/relu"]
    assert second.precision == "fp16"
    assert second.inputs == (("conv1/relu", "fp16"), ("residual, with a comma", "fp16"))
    gemm = layers["linear_myl9_4"]
    assert (gemm.kind, gemm.precision, gemm.onnx_nodes) == ("gemm", "fp16", ("linear",))
    assert layers["Reformatting CopyNode for Input Tensor 0 to input_QuantizeLinear"].inputs == (
        ("input", "fp32"),
    )


def test_lines_may_come_one_by_one_and_with_a_prefix() -> None:
    text = (DATA / "layers-10.log").read_text("utf-8")
    lines = [f"[11/22/2026-00:00:01] [V] [TRT] {line}" for line in text.splitlines()]
    assert layers_from_log(lines) == layers_from_log([text])
    assert layers_from_log([*lines, *lines]) == layers_from_log(lines)


def test_other_lines_are_skipped_quickly() -> None:
    tensors = ", ".join("{ Name: t, Dimensions: [1], Datatype: Int8 }" for _ in range(5000))
    assert layers_from_log(["", "Building", "LayerType: ", f"Name: x, LayerType: y, Inputs: [ {tensors}"]) == ()  # fmt: skip


def test_the_inspector_of_10() -> None:
    layers = from_json("inspector-10.json")
    fused = layers["layer1.0.conv2 + layer1.0.conv2/add + layer1.0.conv2/relu"]
    assert fused.precision == "int8"
    assert fused.inputs == (("layer1.0.conv1/relu", "int8"), ("maxpool", "int8"))
    assert fused.onnx_nodes == ("layer1.0.conv2", "layer1.0.conv2/add", "layer1.0.conv2/relu")
    copy = layers["Reformatting CopyNode for Input Tensor 0 to conv1"]
    assert (copy.precision, copy.outputs[0][1]) == ("fp32", "int8")
    assert not is_weighted(copy)
    assert is_weighted(fused)


def test_with_dynamic_shapes_weights_and_tactic_tell() -> None:
    layers = from_json("inspector-10.json")
    assert layers["dynamic.weights"].precision == "fp16"
    assert layers["dynamic.weights"].onnx_nodes == ("dynamic.weights",)
    assert layers["dynamic.tactic"].precision == "int8"
    assert layers["dynamic.tactic"].inputs == (("layer1.0.conv2/relu", "unknown"),)


def test_int8_is_said_only_where_both_operands_are() -> None:
    assert from_json("inspector-10.json")["false.int8"].precision == "fp32"


def test_the_inspector_of_11() -> None:
    layer = from_json("inspector-11.json")["conv1 + conv1/relu"]
    assert (layer.precision, layer.inputs, layer.outputs) == (
        "fp16",
        (("input", "fp16"),),
        (("conv1/relu", "fp16"),),
    )


def test_an_engine_that_keeps_names_only() -> None:
    layers = layers_from_inspector(json.dumps({"Layers": ["conv1 + conv1/relu"], "Bindings": []}))
    assert layers == (
        EngineLayer("conv1 + conv1/relu", "unknown", "unknown", (), (), ("conv1", "conv1/relu")),
    )


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": 3}', '{"Layers": [{}]}', "[" * 9999])
def test_what_is_not_inspector_output_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="not what the engine inspector writes"):
        layers_from_inspector(text)


def test_nodes_that_tensorrt_for_rtx_rewrote_keep_their_names() -> None:
    # As in a real build of ResNet-50 in FP16, where a 1x1 convolution became a Gemm.
    line = (
        "Name: g, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [-1,64,8,8], Datatype: Half }], "
        "Constants: [], Outputs: [ { Name: y, Dimensions: [-1,64,8,8], Datatype: Half }], "
        "TacticName: t, StreamId: 0, "
        "Metadata: [ONNX Layer: a.conv3]__gemm_from_conv1x1[ONNX Layer: b[0]]"
    )
    (layer,) = layers_from_log([line])
    assert layer.onnx_nodes == ("a.conv3", "b[0]")
