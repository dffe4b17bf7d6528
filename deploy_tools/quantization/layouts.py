"""How onnxruntime's Q/DQ writer is set up for a layout, and what is changed in its result."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from deploy_tools.errors import UserError, require
from deploy_tools.onnx_files import remove_where
from deploy_tools.quantization.residual import main_branches

Ranges = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Layout:
    """op_types: what the writer quantizes, () for all that it knows. options: its extra options.

    ranges: changes the ranges before writing. skip: nodes to leave alone.
    float_branches: every residual Add gets its main branch in float, whatever the user says.
    signed_int8: a tensor that can be negative is symmetric int8, whatever the target's
        activations are; not the graph's input.
    keeps_activations: a Relu stays a node of its own where its output is quantized.
    """

    op_types: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    ranges: Callable[[onnx.ModelProto, Ranges], Ranges] = lambda proto, ranges: ranges
    skip: Callable[[onnx.ModelProto], tuple[str, ...]] = lambda proto: ()
    float_branches: bool = False
    signed_int8: bool = False
    keeps_activations: bool = False

    def known_op_types(self) -> list[str]:
        """Return the operators to quantize."""
        registry = require("onnxruntime.quantization.registry", "", "Quantizing")
        return sorted(self.op_types or {*registry.QLinearOpsRegistry, *registry.QDQRegistry})


def _pool_ranges(proto: onnx.ModelProto, ranges: Ranges) -> Ranges:
    """Give a max pool's output the range of its input.

    Its values are among the input's: on one grid the second quantization changes nothing, and
    the pool can run in INT8.
    """
    shared = dict(ranges)
    for node in proto.graph.node:
        if node.op_type == "MaxPool" and node.input[0] in shared:
            shared[node.output[0]] = shared[node.input[0]]
    return shared


def _no_residuals(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Return the Adds that are no residuals, such as that of a constant."""
    residuals = main_branches(proto)
    return tuple(
        node.name
        for node in proto.graph.node
        if node.op_type == "Add" and node.name not in residuals
    )


def bypass_pairs(
    quantized: onnx.ModelProto,
    proto: onnx.ModelProto,
    floats: Collection[str],
    adds: Collection[str],
    every: bool = False,
) -> None:
    """Feed residual Adds their main branch in float, in the written file.

    proto: the float file. floats: nodes that stay in float. adds: names of residual Adds.
    every: whether all were asked for and not each by name; those that cannot are then passed over.
    The writer quantizes both inputs of an Add. It also gives a node that stays in float the
    pair that another reader of its input needs; that one gets the float tensor too. Pairs that
    nobody reads afterwards are removed.
    """
    mains = {add: main for add, main in main_branches(proto).items() if add in adds}
    producers = {tensor: node for node in quantized.graph.node for tensor in node.output}
    makers = {tensor: node for node in proto.graph.node for tensor in node.output}
    lost = [add for add, main in mains.items() if _lost_activation(makers, producers, main)]
    if lost and not every:
        raise UserError(
            f'the main branch of "{lost[0]}" ends in an activation that is part of its '
            "quantization.",
            'Leave it out of float_branches; "all" takes those that can.',
        )
    mains = {add: main for add, main in mains.items() if add not in lost}
    for node in quantized.graph.node:
        for position, tensor in enumerate(node.input):
            source = _behind_pair(producers, tensor)
            if source and (node.name in floats or mains.get(node.name) == source):
                node.input[position] = source
    _remove_unread_pairs(quantized)


def _lost_activation(
    makers: Mapping[str, onnx.NodeProto], producers: Mapping[str, onnx.NodeProto], tensor: str
) -> bool:
    """Whether the writer left the activation that makes `tensor` to the pair behind it.

    makers: what makes each tensor of the float graph; producers: of the written one.
    """
    made = makers[tensor].op_type
    return made in ("Relu", "Clip") and producers[tensor].op_type != made


def _behind_pair(producers: Mapping[str, onnx.NodeProto], tensor: str) -> str:
    """Return the activation whose Q/DQ pair makes a tensor, "" where none does."""
    last = producers.get(tensor)
    if last is None or last.op_type != "DequantizeLinear":
        return ""
    first = producers.get(last.input[0])  # None: a weight
    return str(first.input[0]) if first is not None else ""


def _remove_unread_pairs(quantized: onnx.ModelProto) -> None:
    """Remove DequantizeLinear, then QuantizeLinear, and their constants that nobody reads."""
    graph = quantized.graph
    kept = {value.name for value in graph.output}
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        _remove_unread(graph, kind, kept)
    read = kept | {tensor for node in graph.node for tensor in node.input}
    remove_where(graph.initializer, lambda tensor: tensor.name not in read)
    alive = read | {tensor for node in graph.node for tensor in node.output}
    remove_where(graph.value_info, lambda value: value.name not in alive)


def _remove_unread(graph: onnx.GraphProto, kind: str, kept: Collection[str]) -> None:
    read = {*kept, *(tensor for node in graph.node for tensor in node.input)}
    remove_where(graph.node, lambda node: node.op_type == kind and node.output[0] not in read)


def around_zero(low: float, high: float) -> tuple[float, float]:
    """Return (-t, t), whose int8 grid, from -128/127 t to t, ends where low..high does or beyond."""
    end = max(-low * 127 / 128, high)
    return -end, end


_TENSORRT_OPS = ("Conv", "Gemm", "MatMul", "Add", "MaxPool")

LAYOUTS = {
    "cpu": Layout(),
    # OpenVINO adds in the convolution's own kernel, in float: the pair behind it costs accuracy
    # and saves nothing (0.97 to 1.05 of the speed without it, ResNet-18, -20 and -50). onnxruntime
    # on the CPU has no such kernel: there it runs slower than FP32.
    # Its convolutions take longer where a shortcut that they add has a zero-point other than 0, and
    # so does the stem; there the coarser grid of pixels around zero would cost accuracy.
    "openvino": Layout(float_branches=True, signed_int8=True),
    # Every input of a layer, INT8 weights in the file, no pairs on biases and outputs: what
    # TensorRT fuses into INT8 kernels.
    "tensorrt": Layout(
        _TENSORRT_OPS,
        {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "AddQDQPairToWeight": False,
            "DedicatedQDQPair": False,
            "ForceQuantizeNoInputCheck": True,
            "OpTypesToExcludeOutputQuantization": list(_TENSORRT_OPS),
        },
        _pool_ranges,
        _no_residuals,
        float_branches=True,
        keeps_activations=True,
    ),
}
