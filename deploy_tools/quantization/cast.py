"""FP32 or Q/DQ ONNX -> the same graph in FP16, with FP32 inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from deploy_tools.artifacts import atomic_path
from deploy_tools.errors import UserError, require
from deploy_tools.onnx_files import load_onnx, require_dynamic_batch, require_float_input
from deploy_tools.quantization.prepare import prepared
from deploy_tools.quantization.summary import describe_quantization
from deploy_tools.runtimes.onnxruntime import PRECISION_KEY

FP16 = onnx.TensorProto.FLOAT16
REST_KEY = "deploy_tools.rest"
"""ONNX metadata: what the part of the file that is not INT8 runs in."""
_LARGEST = 65504.0
_PAIR = ("QuantizeLinear", "DequantizeLinear")
_INT8 = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)


@dataclass(frozen=True)
class CastReport:
    """tensors: weights and constants cast. precision: "fp16", or "int8" where the file has Q/DQ.

    largest, smallest: the largest and the smallest (not 0) magnitude among those cast.
    lost: how many numbers that are not 0 became 0.
    """

    tensors: int
    precision: str
    largest: float
    smallest: float
    lost: int


def fp16_from_onnx(model: Path, path: Path) -> CastReport:
    """Write `model` with FP16 weights and arithmetic to `path`; inputs and outputs stay FP32.

    Q/DQ stay INT8; their scales become FP16, and INT8 weights are rounded again where a scale
    moved by more than FP16's precision (scales below 2^-14).
    Raises UserError where the model is FP16 already, was quantized for a CPU (INT32 biases and
    integer operators have no FP16 form), or holds numbers beyond FP16's 65504.
    """
    proto = prepared(load_onnx(model))
    require_dynamic_batch(proto, model)
    require_float_input(proto, model)
    _refuse(proto, model)
    numbers = _numbers(proto)
    magnitudes = np.abs(np.concatenate([array.reshape(-1) for array in numbers.values()]))
    scales = {n.input[1] for n in proto.graph.node if n.op_type in _PAIR}  # those are rounded up
    lost = sum(_lost(array) for name, array in numbers.items() if name not in scales)
    _require_finite(numbers, model)
    precision = "int8" if describe_quantization(proto).activations else "fp16"
    metadata = {prop.key: prop.value for prop in proto.metadata_props}
    metadata |= {PRECISION_KEY: precision, REST_KEY: "fp16"}
    _fit_scales(proto)
    _round_numbers(proto, numbers)
    cast = _converted(proto)
    del cast.metadata_props[:]
    onnx.helper.set_model_props(cast, dict(sorted(metadata.items())))
    onnx.checker.check_model(cast, full_check=True)
    with atomic_path(path) as part:
        onnx.save(cast, str(part))
    present = magnitudes[magnitudes > 0]
    return CastReport(
        len(numbers),
        precision,
        float(magnitudes.max()),
        float(present.min()) if present.size else 0.0,
        lost,
    )


def _refuse(proto: onnx.ModelProto, model: Path) -> None:
    for node in proto.graph.node:
        if node.op_type.startswith(("QLinear", "ConvInteger", "MatMulInteger", "DynamicQuant")):
            raise UserError(
                f'{model} holds {node.op_type} (node "{node.name}"), which has no FP16 form.',
                "Cast the FP32 file, or one that was quantized with --target tensorrt.",
            )
    stored = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    pairs = [n for n in proto.graph.node if n.op_type in _PAIR]
    for node in pairs:
        if stored.get(node.input[0]) == onnx.TensorProto.INT32:
            raise UserError(
                f'{model} was quantized for a CPU: "{node.input[0]}" is INT32.',
                "Cast a file that was quantized with --target tensorrt.",
            )
    opset = max(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    if pairs and opset < 19:
        raise UserError(
            f"{model} has opset {opset}; FP16 scales need 19 or later.",
            "Export it again: deploy-tools export writes opset 20.",
        )
    if any(tensor.data_type == FP16 for tensor in proto.graph.initializer):
        raise UserError(f"{model} is FP16 already.", "Give the FP32 file that export wrote.")


def _numbers(proto: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    found = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in proto.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    if not found:
        raise UserError("the model has no FP32 weights to cast.")
    return found


def _require_finite(numbers: dict[str, NDArray[np.float32]], model: Path) -> None:
    for name, array in numbers.items():
        high = float(np.abs(array).max()) if array.size else 0.0
        if not high <= _LARGEST:  # NaN too
            raise UserError(
                f'"{name}" in {model} holds {high:g}, beyond FP16, whose largest is 65504.',
                "This model cannot run in FP16.",
            )


def _fit_scales(proto: onnx.ModelProto) -> None:
    """Make every Q/DQ scale one that FP16 holds, and move INT8 weights to it.

    From 2^-14 up FP16 rounds a scale by at most 0.05 %, and the integers stay. Below it has
    fewer bits, and from 2^-25 down none: there the scale is rounded up, so that no integer
    overflows, and w = q s is rounded again to the new grid.
    """
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type not in _PAIR:
            continue
        scale, weight = tensors.get(node.input[1]), tensors.get(node.input[0])
        if scale is None or scale.data_type != onnx.TensorProto.FLOAT:
            continue
        old = numpy_helper.to_array(scale)
        new = _scale_in_fp16(old)
        if weight is not None and weight.data_type in _INT8:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            integers = _moved(numpy_helper.to_array(weight), old, new, axis)
            weight.CopyFrom(numpy_helper.from_array(integers, weight.name))
        scale.CopyFrom(numpy_helper.from_array(new, scale.name))


def _scale_in_fp16(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    near = scale.astype(np.float16)
    above = np.where(near < scale, np.nextafter(near, np.float16(np.inf)), near)
    rounded: NDArray[np.float32] = np.where(scale < 2.0**-14, above, near).astype(np.float32)
    return rounded


def _moved(
    integers: NDArray[np.int8], old: NDArray[np.float32], new: NDArray[np.float32], axis: int
) -> NDArray[np.int8]:
    """Return the integers on the grid of `new`, for the scales below 2^-14."""
    shape = [1] * integers.ndim
    if old.ndim:
        shape[axis] = -1
    ratio = np.where(old < 2.0**-14, old / new, np.float32(1)).reshape(shape)
    limits = np.iinfo(integers.dtype)
    moved: NDArray[np.int8] = np.rint(integers * ratio).clip(limits.min, limits.max)
    return moved.astype(integers.dtype)


def _lost(array: NDArray[np.float32]) -> int:
    """Return how many numbers FP16 rounds to 0."""
    return int(((array != 0) & (np.abs(array) <= 2.0**-25)).sum())


def _round_numbers(proto: onnx.ModelProto, numbers: dict[str, NDArray[np.float32]]) -> None:
    """Round to the nearest FP16 number; the converter would raise tiny ones to 2^-24."""
    for tensor in proto.graph.initializer:
        if tensor.name in numbers:
            array = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _converted(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Let onnxruntime's converter do the graph."""
    float16: Any = require("onnxruntime.transformers.float16", "", "Casting to FP16")
    result: onnx.ModelProto = float16.convert_float_to_float16(proto, keep_io_types=True)
    for node in result.graph.node:
        if node.op_type == "Cast" and node.name.startswith("graph_input"):
            node.name = f"{node.input[0]}/cast"
        elif node.op_type == "Cast" and node.name.startswith("graph_output"):
            node.name = f"{node.output[0]}/cast"
    # The converter appends its casts; ONNX wants nodes in the order in which they run.
    model: Any = require("onnxruntime.quantization.onnx_model", "", "Casting to FP16")
    ordered = model.ONNXModel(result)
    ordered.topological_sort()
    sorted_proto: onnx.ModelProto = ordered.model
    return sorted_proto
