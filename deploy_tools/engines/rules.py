"""What the lint says of single nodes: one rule, one function.

Each rule is a fact about TensorRT's ONNX parser and builder: tried on TensorRT for RTX 1.7.1
(the tests try it again) and read in the parser's source (onnx-tensorrt, release 10.15:
`QuantDequantLinearHelper` and the static checkers) and its docs/operators.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from deploy_tools.engines.graph import LAYERS, Graph, attribute, label


@dataclass(frozen=True)
class Finding:
    """Something in an ONNX file, by node and tensor ("" where it is about neither).

    rule: a short, stable name. message: what it is, what TensorRT makes of it, what to do.
    """

    rule: str
    node: str
    tensor: str
    message: str

    def __str__(self) -> str:
        places = (("node", self.node), ("tensor", self.tensor))
        where = ", ".join(f'{what} "{name}"' for what, name in places if name)
        return f"{self.rule}: {where}{': ' if where else ''}{self.message}"


_INTEGER = (
    "ConvInteger",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QAttention",
    "QGemm",
)
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_REQUANTIZE = "quantize the FP32 file for the tensorrt target"


def name_of_type(data_type: int) -> str:
    """Return the name of an ONNX data type, such as "UINT8"."""
    return str(TensorProto.DataType.Name(data_type))


def integer_operator(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    """Operators that compute in integers have no parser; INT8 has to come as Q/DQ."""
    if node.op_type in _INTEGER or node.op_type.startswith("QLinear"):
        yield Finding(
            "integer-operator",
            label(node),
            node.output[0],
            f"TensorRT has no {node.op_type}; it takes INT8 as QuantizeLinear and "
            f"DequantizeLinear only: {_REQUANTIZE}.",
        )


def foreign_operator(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    """An operator that ONNX does not define is looked up among plugins, and not found."""
    if node.domain not in ("", "ai.onnx") and not node.op_type.startswith("QLinear"):
        yield Finding(
            "foreign-operator",
            label(node),
            node.output[0],
            f"{node.op_type} of {node.domain} is no ONNX operator: TensorRT looks for a plugin of "
            "that name and fails; export the model without optimizing it for another runtime.",
        )


def zero_point(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    """TensorRT quantizes to INT8 around 0; UINT8 it reads as INT8, which cuts off half."""
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or _stored_wrong(graph, node):
        return
    name = node.input[2] if len(node.input) > 2 else ""
    if not name:
        chosen = attribute(node, "output_dtype", TensorProto.UNDEFINED)
        if node.op_type == "QuantizeLinear" and chosen != TensorProto.INT8:
            given = "has no zero-point, which means UINT8 in ONNX; TensorRT reads INT8"
            if chosen != TensorProto.UNDEFINED:
                given = f"quantizes to {name_of_type(chosen)}; TensorRT takes INT8 only"
            yield Finding("zero-point", label(node), node.output[0], f"{given}: {_REQUANTIZE}.")
        return
    constant = graph.constant(name)
    reason = (
        "is computed while the model runs; TensorRT wants the constant INT8 0: fold constants, or"
        if constant is None
        else _wrong_zero_point(constant, graph.constant(node.input[1]))
    )
    if reason:
        yield Finding("zero-point", label(node), name, f"{reason} {_REQUANTIZE}.")


def _wrong_zero_point(constant: onnx.TensorProto, scale: onnx.TensorProto | None) -> str:
    """Return what is wrong with a zero-point, or "" where it is INT8 0."""
    kind = name_of_type(constant.data_type)
    if constant.data_type not in (TensorProto.INT8, TensorProto.UINT8):
        return f"is {kind}; TensorRT quantizes to INT8 only:"
    values = numpy_helper.to_array(constant)
    if values.any():
        value = int(values[values != 0].flat[0])
        return f"is {kind} {value}; TensorRT quantizes around 0 only, and refuses the file:"
    if constant.data_type == TensorProto.UINT8:
        return (
            "is UINT8; TensorRT reads it as INT8 with no more than a warning, cuts off the upper "
            "half of the range and answers wrongly:"
        )
    if scale is not None and values.size != numpy_helper.to_array(scale).size:
        return f"has {values.size} values for a scale of another size, which TensorRT refuses:"
    return ""


def stored_type(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    """A DequantizeLinear of stored values: INT8 weights only, no INT32 bias."""
    kind = _stored_wrong(graph, node)
    if kind == TensorProto.INT32:
        yield Finding(
            "quantized-bias",
            label(node),
            node.input[0],
            "is an INT32 bias, which TensorRT cannot dequantize; biases stay in float "
            f"(onnxruntime: QuantizeBias=False): {_REQUANTIZE}.",
        )
    elif kind:
        yield Finding(
            "quantized-weights",
            label(node),
            node.input[0],
            f"is stored as {name_of_type(kind)}; TensorRT takes INT8 weights only: {_REQUANTIZE}.",
        )


def _stored_wrong(graph: Graph, node: onnx.NodeProto) -> int:
    """Return the type of what a DequantizeLinear reads where it is stored and not INT8, else 0."""
    if node.op_type != "DequantizeLinear":
        return 0
    stored = graph.constant(node.input[0])
    zero = graph.constant(node.input[2]) if len(node.input) > 2 else None
    if stored is None and zero is not None and zero.data_type == TensorProto.INT32:
        return int(TensorProto.INT32)
    if stored is None or stored.data_type == TensorProto.INT8:
        return 0
    return int(stored.data_type)


def scale(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    """Scales are constants, above 0 and finite, one a tensor or one a channel."""
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return
    constant = graph.constant(node.input[1])
    reason = ""
    if constant is None:
        reason = (
            "is computed while the model runs; TensorRT wants a constant (a scale that depends on "
            "the input makes TensorRT for RTX 1.7 crash): fold constants, or"
        )
    elif constant.data_type not in _FLOATS:
        reason = f"is {name_of_type(constant.data_type)}; TensorRT wants FLOAT or FLOAT16:"
    else:
        reason = _wrong_scale(constant, attribute(node, "block_size", 0))
    if reason:
        yield Finding("scale", label(node), node.input[1], f"{reason} {_REQUANTIZE}.")


def _wrong_scale(constant: onnx.TensorProto, block_size: int) -> str:
    values = numpy_helper.to_array(constant).astype(np.float32)
    wrong = values[~(np.isfinite(values) & (values > 0))]
    if wrong.size:
        return f"holds {wrong.flat[0]:g}; a scale is finite and above 0:"
    if block_size or (values.ndim > 1 and values.size > 1):
        return "is a scale a block, which TensorRT takes for 4-bit weights only:"
    return ""


def scale_types(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    """The scale's type is the type that DequantizeLinear gives; a layer wants one type."""
    if node.op_type not in (*LAYERS, "Add", "Concat"):
        return
    kinds: dict[int, str] = {}
    for tensor in node.input:
        made = graph.producer(tensor)
        constant = graph.constant(tensor)
        if made is not None and made.op_type == "DequantizeLinear":
            of_scale = graph.constant(made.input[1])
            kind = of_scale.data_type if of_scale is not None else 0
            kind = attribute(made, "output_dtype", kind)
        else:
            kind = constant.data_type if constant is not None else 0
        if kind in _FLOATS:
            kinds.setdefault(kind, tensor)
    if len(kinds) > 1:
        said = " and ".join(f'{name_of_type(k)} ("{tensor}")' for k, tensor in kinds.items())
        yield Finding(
            "scale-types",
            label(node),
            list(kinds.values())[-1],
            f"the inputs are {said}, and TensorRT takes no two types (a DequantizeLinear gives the "
            "type of its scale): convert the whole file with deploy-tools cast fp16.",
        )


def training(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    """A model exported in training mode."""
    trains = node.op_type == "BatchNormalization" and (
        attribute(node, "training_mode", 0) != 0 or len([t for t in node.output if t]) > 1
    )
    if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
        mode = graph.constant(node.input[2])
        trains = mode is None or bool(numpy_helper.to_array(mode).any())
    if trains:
        yield Finding(
            "training",
            label(node),
            node.output[0],
            f"{node.op_type} in training mode, which TensorRT refuses: export the model in eval "
            "mode (deploy-tools export does).",
        )


def pooling(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    """Pooling that the parser refuses."""
    if node.op_type not in ("MaxPool", "AveragePool", "LpPool"):
        return
    dilations = next((list(a.ints) for a in node.attribute if a.name == "dilations"), [])
    reason = "has dilations other than 1" if any(d != 1 for d in dilations) else ""
    if len([tensor for tensor in node.output if tensor]) > 1:
        reason = "has an output of indices"
    if reason:
        yield Finding(
            "pooling",
            label(node),
            node.output[-1],
            f"{node.op_type} {reason}, which TensorRT refuses: change the model.",
        )


RULES = (
    integer_operator,
    foreign_operator,
    stored_type,
    zero_point,
    scale,
    scale_types,
    training,
    pooling,
)
