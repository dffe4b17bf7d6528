"""Small models for TensorRT: one good Q/DQ file, and every way to spoil it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

NNCF = Path(__file__).resolve().parents[1] / "data" / "tensorrt" / "nncf-u8.onnx"
SHAPE = (3, 16, 16)
Make = Callable[[], onnx.ModelProto]


def tiny(batch: int | str = "N", opset: int = 20) -> onnx.ModelProto:
    """Return conv1-relu-conv2-relu-pool-flatten-fc: (N, 3, 16, 16) -> (N, 5), random weights."""
    nodes = [
        helper.make_node("Conv", ["input", "conv1.weight", "conv1.bias"], ["conv1"], "conv1", pads=[1] * 4),
        helper.make_node("Relu", ["conv1"], ["conv1/relu"], "conv1/relu"),
        helper.make_node("Conv", ["conv1/relu", "conv2.weight", "conv2.bias"], ["conv2"], "conv2", pads=[1] * 4),
        helper.make_node("Relu", ["conv2"], ["conv2/relu"], "conv2/relu"),
        helper.make_node("GlobalAveragePool", ["conv2/relu"], ["pool"], "pool"),
        helper.make_node("Flatten", ["pool"], ["flat"], "flat"),
        helper.make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["logits"], "fc", transB=1),
    ]  # fmt: skip
    shapes = {
        "conv1.weight": (8, 3, 3, 3), "conv1.bias": (8,), "conv2.weight": (8, 8, 3, 3),
        "conv2.bias": (8,), "fc.weight": (5, 8), "fc.bias": (5,),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 5])],
        [_weight(name, *shape) for name, shape in shapes.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def _weight(name: str, *shape: int) -> onnx.TensorProto:
    generator = np.random.default_rng([*name.encode(), *shape])
    spread = (2 / (np.prod(shape[1:]) if len(shape) > 1 else 10)) ** 0.5
    return numpy_helper.from_array((generator.normal(size=shape) * spread).astype(np.float32), name)


def good() -> onnx.ModelProto:
    """Return `tiny` quantized as TensorRT wants it: the file of NNCF with INT8 zero-points."""
    proto = onnx.load(str(NNCF))
    del proto.graph.value_info[:]  # they say UINT8
    for tensor in list(proto.graph.initializer):
        if tensor.data_type == TensorProto.UINT8:
            put(proto, tensor.name, np.int8(0))
    return proto


def node(proto: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in proto.graph.node if n.name == name)


def put(proto: onnx.ModelProto, name: str, value: ArrayLike | None) -> None:
    """Give an initializer another value; None removes it."""
    for tensor in list(proto.graph.initializer):
        if tensor.name == name:
            proto.graph.initializer.remove(tensor)
    if value is not None:
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))


def value(proto: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == name))


def insert(proto: onnx.ModelProto, before: str, new: onnx.NodeProto) -> None:
    place = [n.name for n in proto.graph.node].index(before)
    proto.graph.node.insert(place, new)


PAIR = ("QuantizeLinear_conv1/relu_1", "DequantizeLinear_conv1/relu_1")
ZERO, SCALE = "zero_point_conv1/relu_1", "scale_conv1/relu_1"


def with_zero_point(number: ArrayLike) -> onnx.ModelProto:
    proto = good()
    put(proto, ZERO, number)
    return proto


def with_scale(number: ArrayLike) -> onnx.ModelProto:
    proto = good()
    put(proto, SCALE, number)
    return proto


def without_zero_point(**attributes: int) -> onnx.ModelProto:
    proto = good()
    proto.opset_import[0].version = 21
    for name in PAIR:
        del node(proto, name).input[2]
    node(proto, PAIR[0]).attribute.extend(
        helper.make_attribute(k, v) for k, v in attributes.items()
    )
    return proto


def computed_zero_point() -> onnx.ModelProto:
    proto = good()
    put(proto, ZERO, None)
    first = "QuantizeLinear_input_1"
    insert(
        proto, first, helper.make_node("ReduceMax", ["input"], ["largest"], "largest", keepdims=0)
    )
    insert(proto, first, helper.make_node("Cast", ["largest"], [ZERO], "cast", to=TensorProto.INT8))
    return proto


def zero_point_of_a_constant(data_type: type, op: str = "Identity") -> onnx.ModelProto:
    proto = good()
    put(proto, ZERO, None)
    held = numpy_helper.from_array(np.array(0, data_type), "held")
    insert(
        proto,
        "QuantizeLinear_input_1",
        helper.make_node("Constant", [], ["held"], "held", value=held),
    )
    insert(proto, "QuantizeLinear_input_1", helper.make_node(op, ["held"], [ZERO], "same"))
    return proto  # fmt: skip


def computed_scale() -> onnx.ModelProto:
    proto = good()
    put(proto, SCALE, None)
    largest = helper.make_node("ReduceMax", ["input"], [SCALE], "largest", keepdims=0)
    insert(proto, "QuantizeLinear_input_1", largest)
    return proto


def half_weight_scale() -> onnx.ModelProto:
    proto = good()
    name = "scale_conv2.weight_1"
    put(proto, name, value(proto, name).astype(np.float16))
    return proto


def quantized_bias(data_type: type = np.int32) -> onnx.ModelProto:
    proto = good()
    put(proto, "bias.q", np.arange(8, dtype=data_type))
    put(proto, "bias.s", np.full(8, 1e-3, np.float32))
    put(proto, "bias.z", np.zeros(8, data_type))
    new = helper.make_node(
        "DequantizeLinear", ["bias.q", "bias.s", "bias.z"], ["bias.dq"], "bias.dq", axis=0
    )
    insert(proto, "conv2", new)
    node(proto, "conv2").input[2] = "bias.dq"
    return proto  # fmt: skip


def uint8_weights() -> onnx.ModelProto:
    proto = good()
    name = "q_output_conv2.weight_1"
    put(proto, name, (value(proto, name).astype(int) + 128).astype(np.uint8))
    put(proto, "zero_point_conv2.weight_1", np.full(8, 128, np.uint8))
    return proto


def one_zero_point_for_eight_scales() -> onnx.ModelProto:
    proto = good()
    put(proto, "zero_point_conv2.weight_1", np.int8(0))
    return proto


def blocked_weights() -> onnx.ModelProto:
    proto = good()
    proto.opset_import[0].version = 21
    layer = node(proto, "DequantizeLinear_fc.weight_1")
    layer.attribute[0].i = 1
    layer.attribute.append(helper.make_attribute("block_size", 4))
    put(proto, "scale_fc.weight_1", np.full((5, 2), 0.01, np.float32))
    put(proto, "zero_point_fc.weight_1", np.zeros((5, 2), np.int8))
    return proto


def with_input_type(data_type: int) -> onnx.ModelProto:
    proto = tiny()
    proto.graph.input[0].type.tensor_type.elem_type = data_type
    insert(proto, "conv1", helper.make_node("Cast", ["input"], ["x"], "x", to=TensorProto.FLOAT))
    node(proto, "conv1").input[0] = "x"
    return proto


def training_norm(outputs: int = 3, opset: int = 20) -> onnx.ModelProto:
    """Put a BatchNormalization in training mode behind conv1; before opset 14 outputs say so."""
    proto = tiny(opset=opset)
    names = ["bn.s", "bn.b", "bn.m", "bn.v"]
    for name in names:
        put(proto, name, np.ones(8, np.float32))
    made = ["bn", *(f"running.{place}" for place in range(1, outputs))]
    mode = {"training_mode": 1} if opset >= 14 else {}
    new = helper.make_node("BatchNormalization", ["conv1", *names], made, "bn", **mode)
    insert(proto, "conv1/relu", new)
    node(proto, "conv1/relu").input[0] = "bn"
    return proto


def dropout(training: bool) -> onnx.ModelProto:
    proto = tiny()
    put(proto, "ratio", np.float32(0.5))
    put(proto, "mode", np.bool_(training))
    insert(proto, "fc", helper.make_node("Dropout", ["flat", "ratio", "mode"], ["dropped"], "drop"))
    node(proto, "fc").input[0] = "dropped"
    return proto


def max_pool(outputs: tuple[str, ...] = ("mp",), **attributes: object) -> onnx.ModelProto:
    proto = tiny()
    new = helper.make_node(
        "MaxPool", ["conv1/relu"], list(outputs), "maxpool", kernel_shape=[3, 3], **attributes
    )
    insert(proto, "conv2", new)
    node(proto, "conv2").input[0] = "mp"
    return proto  # fmt: skip


def fused_operator() -> onnx.ModelProto:
    proto = tiny()
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    node(proto, "conv2").op_type = "FusedConv"
    node(proto, "conv2").domain = "com.microsoft"
    return proto


def fixed_reshape(shape: tuple[int, ...] = (1, 8)) -> onnx.ModelProto:
    proto = tiny()
    flat = node(proto, "flat")
    flat.op_type = "Reshape"
    flat.input.append("shape")
    put(proto, "shape", np.array(shape, np.int64))
    return proto


def there_and_back() -> onnx.ModelProto:
    """Move the batch into the channels, as an instance norm does, and back again."""
    proto = tiny()
    put(proto, "there", np.array((1, -1, 16, 16), np.int64))
    put(proto, "back", np.array((-1, 8, 16, 16), np.int64))
    nodes = [
        helper.make_node("Reshape", ["conv1", "there"], ["moved"], "moved"),
        helper.make_node("Sigmoid", ["moved"], ["normed"], "normed"),
        helper.make_node("Reshape", ["normed", "back"], ["restored"], "restored"),
    ]
    for new in nodes:
        insert(proto, "conv1/relu", new)
    node(proto, "conv1/relu").input[0] = "restored"
    return proto


def half_output() -> onnx.ModelProto:
    proto = tiny()
    proto.graph.node.append(
        helper.make_node("Cast", ["logits"], ["half"], "half", to=TensorProto.FLOAT16)
    )
    proto.graph.output[0].name = "half"
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    return proto


def weights_alone() -> onnx.ModelProto:
    """Return `good` without the Q/DQ of activations: INT8 weights, and nothing runs in INT8."""
    proto = good()
    for quantize in [n for n in proto.graph.node if n.op_type == "QuantizeLinear"]:
        readers = [n for n in proto.graph.node if quantize.output[0] in n.input]
        for dequantize in readers:
            for other in proto.graph.node:
                for place, tensor in enumerate(other.input):
                    if tensor == dequantize.output[0]:
                        other.input[place] = quantize.input[0]
            proto.graph.node.remove(dequantize)
        proto.graph.node.remove(quantize)
    return proto


def in_a_branch(inner: bool = True) -> onnx.ModelProto:
    """Put an If around the Gemm's input, with a MaxPool of dilations inside a branch."""
    proto = tiny()
    put(proto, "yes", np.bool_(True))

    def branch(name: str) -> onnx.GraphProto:
        nodes = [helper.make_node("Identity", ["conv2/relu"], [name], f"{name}.same")]
        if inner:
            nodes = [
                helper.make_node(
                    "MaxPool",
                    ["conv2/relu"],
                    [name],
                    f"{name}.pool",
                    kernel_shape=[2, 2],
                    dilations=[2, 2],
                )
            ]
        made = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph(nodes, name, [], [made])  # fmt: skip

    new = helper.make_node(
        "If", ["yes"], ["chosen"], "if", then_branch=branch("a"), else_branch=branch("b")
    )
    insert(proto, "pool", new)
    node(proto, "pool").input[0] = "chosen"
    return proto  # fmt: skip


def in_a_function(op: str) -> onnx.ModelProto:
    """Put conv2's Relu into a model-local function, as an operator of the given type."""
    proto = tiny()
    opsets = [helper.make_opsetid("", 20)]
    body = [helper.make_node(op, ["x"], ["y"], "inner")]
    proto.functions.append(helper.make_function("mine", "Mine", ["x"], ["y"], body, opsets))
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    node(proto, "conv2/relu").op_type = "Mine"
    node(proto, "conv2/relu").domain = "mine"
    return proto
