"""Which targets a file fits, with the reason: what `inspect` tells of any ONNX file.

The reasons are measured (see docs/measurements.md) or tried: what onnxruntime fuses, and what
OpenVINO loads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from deploy_tools.quantization.targets import TARGETS

_SEVEN_BITS = 64
_ONLY_WEIGHTS = "only its weights have Q/DQ, so nothing runs in INT8"
_PAIRS = ("QuantizeLinear", "DequantizeLinear")
# Where each operator keeps its stored weights.
_WEIGHTS = {"DequantizeLinear": 0, "QLinearConv": 3, "QGemm": 3, "QLinearMatMul": 3,
            "ConvInteger": 1, "MatMulInteger": 1}  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """Whether a file suits a target: it runs there, no slower than FP32, and computes right."""

    target: str
    fits: bool
    reason: str


@dataclass(frozen=True)
class _Traits:
    """What the decision rests on.

    form: "float", "qdq", "weights" (Q/DQ on weights alone, which nothing computes in INT8),
        "operators" (QLinearConv and the like) or "dynamic".
    activations: types of the Q/DQ of activations, "int8 around 0" apart from other int8.
    largest: magnitude of the largest INT8 weight. fp16: whether weights or scales are FP16.
    """

    form: str
    activations: frozenset[str]
    largest: int
    fp16: bool
    convolutions: bool


def fits_of(proto: onnx.ModelProto, tensorrt_refuses: Collection[str]) -> tuple[Fit, ...]:
    """Return one Fit for each target in `TARGETS`, in that order.

    tensorrt_refuses: the rules that the lint of `engines` found broken, one entry a finding; ()
        where TensorRT can build the file.
    """
    traits = _traits(proto)
    found = {
        "ort-cpu": _ort_cpu(traits),
        "openvino": _openvino(traits),
        "arm": _arm(traits),
        "x86-no-vnni": _no_vnni(traits),
        "tensorrt": _tensorrt(traits, tensorrt_refuses),
    }
    return tuple(Fit(name, *found[name]) for name in TARGETS)


def _ort_cpu(traits: _Traits) -> tuple[bool, str]:
    if traits.form == "float":
        if traits.fp16:
            return False, "runs, but computes in FP32: no faster than the FP32 file"
        return True, "FP32"
    if traits.form == "weights":
        return False, f"runs, but computes in FP32: {_ONLY_WEIGHTS}"
    if traits.form == "dynamic":
        if traits.convolutions:
            return False, "runs, but slower than FP32: ConvInteger has no fast kernel"
        return True, "weights in INT8, activations quantized as it runs"
    if traits.form == "operators":
        return True, "integer operators"
    if traits.fp16:
        return False, "runs, but far slower than FP32: Q/DQ in FP16 have no integer kernels"
    if traits.activations == {"int8 around 0"}:
        return False, (
            "runs, but slower than FP32: activations around 0 leave Relu and Add in float"
        )
    return True, f"{_said(traits)} activations: integer kernels"


def _openvino(traits: _Traits) -> tuple[bool, str]:
    if traits.form == "operators":
        return False, "OpenVINO has no QLinear operators"
    if "int8" in traits.activations:
        return False, "OpenVINO refuses signed activations with a zero-point other than 0"
    if traits.form == "float":
        return True, "float; it chooses FP32 or bf16"
    if traits.form == "weights":
        return True, f"float: {_ONLY_WEIGHTS}"
    return True, "INT8" if traits.form == "dynamic" else f"{_said(traits)} activations"


def _arm(traits: _Traits) -> tuple[bool, str]:
    if traits.form == "float":
        return True, "float"
    if traits.form == "qdq" and "uint8" in traits.activations:
        return False, "runs, but its activations are unsigned; the arm target stores signed ones"
    if traits.activations == {"int8 around 0"} and not traits.fp16:
        return False, "runs, but activations around 0 leave Relu and Add in float"
    return _ort_cpu(traits)


def _no_vnni(traits: _Traits) -> tuple[bool, str]:
    if traits.form not in ("float", "weights") and traits.largest > _SEVEN_BITS:
        return False, (
            f"its weights use 8 bits (up to {traits.largest}); without VNNI sums can overflow 16 "
            "bits, and answers are wrong; the x86-no-vnni target stores 7 bits"
        )
    return _ort_cpu(traits)


def _tensorrt(traits: _Traits, refuses: Collection[str]) -> tuple[bool, str]:
    if refuses:
        counts = Counter(refuses).items()
        return False, "the lint refuses it: " + ", ".join(f"{n} x {what}" for what, n in counts)
    kind = "FP16" if traits.fp16 else "FP32"
    if traits.form == "weights":
        return True, f"{kind}: {_ONLY_WEIGHTS}"
    return True, kind if traits.form == "float" else f"INT8, and {kind} for the rest"


def _said(traits: _Traits) -> str:
    return " and ".join(sorted(traits.activations))


def _traits(proto: onnx.ModelProto) -> _Traits:
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    kinds = {node.op_type for node in proto.graph.node}
    form = "float"
    if any(kind.startswith("QLinear") for kind in kinds):
        form = "operators"
    elif kinds & {"ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"}:
        form = "dynamic"
    elif kinds & set(_PAIRS):
        form = "qdq"
    largest = max(_largest_weights(proto, weights), default=0)
    halves = any(tensor.data_type == TensorProto.FLOAT16 for tensor in weights.values())
    activations = frozenset(_activations(proto, weights))
    if form == "qdq" and not activations:
        form = "weights"
    return _Traits(form, activations, largest, halves, "ConvInteger" in kinds)


def _activations(proto: onnx.ModelProto, weights: dict[str, onnx.TensorProto]) -> Iterator[str]:
    stored = {
        name for node in proto.graph.node if node.op_type == "Constant" for name in node.output
    }
    for node in proto.graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] in stored | set(weights):
            continue
        zero = weights.get(node.input[2]) if len(node.input) > 2 else None
        if zero is None or zero.data_type == TensorProto.UINT8:
            yield "uint8"
        elif zero.data_type == TensorProto.INT8:
            yield "int8" if numpy_helper.to_array(zero).any() else "int8 around 0"
        else:
            yield str(TensorProto.DataType.Name(zero.data_type)).lower()


def _largest_weights(proto: onnx.ModelProto, weights: dict[str, onnx.TensorProto]) -> Iterator[int]:
    for node in proto.graph.node:
        place = _WEIGHTS.get(node.op_type)
        stored = weights.get(node.input[place]) if place is not None else None
        if stored is not None and stored.data_type == TensorProto.INT8:
            values = numpy_helper.to_array(stored)
            yield int(np.abs(values.astype(np.int16)).max(initial=0))
