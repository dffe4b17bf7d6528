"""What TensorRT builds, but slower than it could: hints, never refusals.

TensorRT runs a layer in INT8 where its input and its weights both come from Q/DQ with a scale
a tensor and a scale an output channel; anything else it computes in float, without a word
(seen in the build log of TensorRT for RTX 1.7.1, and NVIDIA's guide to explicit quantization).
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from deploy_tools.engines.graph import LAYERS, Graph, attribute, label
from deploy_tools.engines.rules import Finding

_PAIRS = ("QuantizeLinear", "DequantizeLinear")


def hints_of(proto: onnx.ModelProto) -> tuple[Finding, ...]:
    """Return what makes a Q/DQ file slower than it could be; () for a file without Q/DQ."""
    graph = Graph(proto.graph)
    if not has_pairs(graph):
        return ()
    found = [hint for node in graph.nodes for hint in (*_layer(graph, node), *_add(graph, node))]
    return (*found, *_rest(graph))


def has_pairs(graph: Graph) -> bool:
    """Whether a file has Q/DQ at all; stored INT8 weights have no more than a DequantizeLinear."""
    return any(node.op_type in _PAIRS for node in graph.nodes)


def why_float(graph: Graph, node: onnx.NodeProto) -> str:
    """Return why the file lets no layer of `LAYERS` run in INT8, "" where it does."""
    data, weights = graph.dequantizer(node.input[0]), graph.dequantizer(node.input[1])
    if data is None and weights is None:
        return "neither its input nor its weights have Q/DQ"
    if data is None:
        return f'its input "{node.input[0]}" has no Q/DQ (its weights do)'
    if weights is None:
        return f'its weights "{node.input[1]}" have no Q/DQ (its input does)'
    if _length(graph, data.input[1]) > 1:
        return f'its input has a scale a channel ("{data.input[1]}"), INT8 wants one a tensor'
    return _wrong_axis(graph, node, weights)


def is_residual(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a node adds two activations."""
    return (
        node.op_type == "Add"
        and node.input[0] != node.input[1]
        and not any(graph.is_constant(tensor) for tensor in node.input)
    )


def why_float_add(graph: Graph, node: onnx.NodeProto) -> str:
    """Return why no convolution takes a residual Add in, "" where one can."""
    quantized = [graph.dequantizer(tensor) is not None for tensor in node.input]
    if not any(quantized):
        return "neither of its inputs has Q/DQ, so both are read and written in float"
    if all(quantized):
        return "both of its inputs have Q/DQ, so no convolution can add in its own kernel"
    return ""


def _layer(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    if node.op_type not in LAYERS or graph.is_constant(node.input[0]):
        return
    reason = why_float(graph, node)
    if reason:
        message = f"this {node.op_type} runs in float: {reason}."
        yield Finding("float-layer", label(node), node.output[0], message)


def _add(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    reason = why_float_add(graph, node) if is_residual(graph, node) else ""
    if reason:
        yield Finding(
            "residual-add",
            label(node),
            node.output[0],
            f"{reason}; a usual cause of INT8 no faster than FP16. The tensorrt target "
            "quantizes the shortcut's side only.",
        )


def _rest(graph: Graph) -> Iterator[Finding]:
    pairs = [node for node in graph.nodes if node.op_type in _PAIRS]
    scales = [graph.constant(node.input[1]) for node in pairs]
    if all(scale is not None and scale.data_type == TensorProto.FLOAT for scale in scales):
        yield Finding(
            "fp32-rest",
            "",
            "",
            "what is not INT8 runs in FP32: deploy-tools cast fp16 makes it FP16.",
        )


def _wrong_axis(graph: Graph, node: onnx.NodeProto, weights: onnx.NodeProto) -> str:
    """Return what is wrong with the axis of the weights' scales."""
    stored = graph.constant(weights.input[0])
    if stored is None:
        made = graph.producer(weights.input[0])  # float weights with a Q/DQ pair
        stored = graph.constant(made.input[0]) if made is not None else None
    direct = graph.producer(node.input[1]) is weights
    if stored is None or not direct or _length(graph, weights.input[1]) == 1:
        return ""
    wanted = {"Conv": 0, "MatMul": len(stored.dims) - 1}.get(node.op_type)
    if node.op_type == "Gemm":
        wanted = 0 if attribute(node, "transB", 0) else 1
    axis = attribute(weights, "axis", 1)
    axis += len(stored.dims) if axis < 0 else 0
    if wanted is None or axis == wanted:
        return ""
    return f"its weights have a scale for each index of axis {axis}, INT8 wants axis {wanted}"


def _length(graph: Graph, tensor: str) -> int:
    """Return how many values a constant holds; 1 where it is none."""
    constant = graph.constant(tensor)
    length = 1
    for dim in constant.dims if constant is not None else ():
        length *= dim
    return length
