"""Static INT8: onnxruntime's Q/DQ writer, fed with our ranges.

Only its writer is used. Its calibrators keep every activation of every image in memory;
`calibration` streams instead and hands the ranges over as a value.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx

from deploy_tools.artifacts import atomic_path
from deploy_tools.errors import UserError, nearest, require
from deploy_tools.onnx_files import (
    load_onnx,
    real_inputs,
    require_dynamic_batch,
    require_float_input,
    require_nodes,
)
from deploy_tools.quantization.dead_channels import scale_dead_channels
from deploy_tools.quantization.indexed_model import index_model
from deploy_tools.quantization.layouts import LAYOUTS, around_zero, bypass_pairs
from deploy_tools.quantization.prepare import prepared
from deploy_tools.quantization.residual import main_branches
from deploy_tools.quantization.summary import QuantizationSummary, describe_quantization
from deploy_tools.quantization.targets import Target, target_named
from deploy_tools.runtimes.onnxruntime import PRECISION_KEY


class Ranges(Protocol):
    """What this room needs of a range table."""

    def range_of(self, tensor: str, grid: str) -> tuple[float, float]:
        """Return (low, high) with low <= 0 <= high."""
        ...


# The writer drops a Relu whose output it quantizes: clamping at the zero-point does its work,
# if the range starts at 0. For a tensor without any value above 0 it would take zero-point 0,
# which for int8 clamps nothing; this high end gives the same scale, 1, and the right one.
_DEAD = {"u8": 255.0, "s8": 127.0}


@dataclass(frozen=True)
class StaticConfig:
    """target: a name in `TARGETS`. exclude: names of nodes that stay in float.

    per_channel: one weight scale an output channel; False is one a tensor.
    first_conv, last_gemm: False leaves the first convolution or the final Gemm in float.
    float_branches: residual Adds, by node name or ("all",), that get their main branch
        unquantized; on targets tensorrt and openvino all do, since Conv, Add and Relu fuse there.
    """

    target: str = "ort-cpu"
    per_channel: bool = True
    exclude: tuple[str, ...] = ()
    first_conv: bool = True
    last_gemm: bool = True
    float_branches: tuple[str, ...] = ()

    def nodes_in_float(self, proto: onnx.ModelProto) -> tuple[str, ...]:
        """Return the names of the nodes that these settings leave in float."""
        names = dict.fromkeys(self.exclude)
        for left_out, kinds, position in (
            (not self.first_conv, ("Conv",), 0),
            (not self.last_gemm, ("Gemm", "MatMul"), -1),
        ):
            found = [node.name for node in proto.graph.node if node.op_type in kinds]
            if left_out and not found:
                raise UserError(f"the model has no {' or '.join(kinds)} to leave in float.")
            if left_out:
                names[found[position]] = None
        return tuple(names)

    def adds_in_float(self, proto: onnx.ModelProto) -> tuple[str, ...]:
        """Return the residual Adds whose main branch is not quantized; UserError for another."""
        adds = main_branches(proto)
        if self.float_branches == ("all",) and "all" not in adds:
            return tuple(adds)
        for name in self.float_branches:
            if name not in adds:
                raise UserError(f'"{name}" is no residual Add of the model.', nearest(name, adds))
        every = LAYOUTS[target_named(self.target).layout].float_branches
        return tuple(adds) if every else self.float_branches


def activation_tensors(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Return the tensors that any target may quantize, in graph order: what to calibrate.

    That is the input and every intermediate tensor, without those that only a Relu or Clip
    reads: the layer and its activation are one kernel, so what lies between is never quantized.
    """
    outputs = {value.name for value in proto.graph.output}
    inner = _inner_tensors(proto)
    names = [value.name for value in real_inputs(proto)]
    for node in proto.graph.node:
        if node.op_type != "Constant":
            names += [t for t in node.output if t and t not in outputs and t not in inner]
    return tuple(names)


def quantized_tensors(proto: onnx.ModelProto, config: StaticConfig) -> tuple[str, ...]:
    """Return the activations that `config` quantizes, in graph order.

    proto: as `prepared` returns it. The writer itself is asked, with ranges that stand for any.
    Raises UserError as `qdq_from_onnx` does.
    """
    found = set(describe_quantization(_quantized(proto, _AnyRanges(), config)).activations)
    return tuple(tensor for tensor in activation_tensors(proto) if tensor in found)


class _AnyRanges:
    def range_of(self, tensor: str, grid: str) -> tuple[float, float]:
        return -1.0, 1.0


def _inner_tensors(proto: onnx.ModelProto) -> dict[str, str]:
    """Return the tensors that only activations read, each with the output of its first reader."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        for tensor in node.input:
            readers.setdefault(tensor, []).append(node)
    return {
        tensor: readers[tensor][0].output[0]
        for node in proto.graph.node
        for tensor in node.output
        if tensor in readers
        and all(reader.op_type in ("Relu", "Clip") for reader in readers[tensor])
    }


def qdq_from_onnx(
    model: Path, ranges: Ranges, path: Path, config: StaticConfig | None = None
) -> QuantizationSummary:
    """Write the Q/DQ file of `model` for a target to `path`.

    Raises UserError where the model is quantized already, has a fixed batch, where a node to
    exclude does not exist or cannot be split from its layer, or where nothing is left.
    """
    config = config or StaticConfig()
    target = target_named(config.target)
    proto = prepared(load_onnx(model))
    require_dynamic_batch(proto, model)
    require_float(proto, model)
    metadata = {prop.key: prop.value for prop in proto.metadata_props}
    quantized = _quantized(proto, ranges, config)
    if not describe_quantization(quantized).quantized_layers:
        raise UserError(f"nothing in {model} is left to quantize.", "Exclude fewer nodes.")
    metadata |= {PRECISION_KEY: "int8", "deploy_tools.target": target.name}
    del quantized.metadata_props[:]
    onnx.helper.set_model_props(quantized, dict(sorted(metadata.items())))
    onnx.checker.check_model(quantized, full_check=True)
    with atomic_path(path) as part:
        onnx.save(quantized, str(part))
    return describe_quantization(quantized)


def _quantized(proto: onnx.ModelProto, ranges: Ranges, config: StaticConfig) -> onnx.ModelProto:
    target = target_named(config.target)
    require_nodes(proto, config.exclude)
    floats = config.nodes_in_float(proto)
    _require_separable(proto, floats)
    quantized = _write(proto, ranges, target, config.per_channel, floats)
    scale_dead_channels(quantized, proto)
    adds = config.adds_in_float(proto)
    every = config.float_branches == ("all",) or LAYOUTS[target.layout].float_branches
    bypass_pairs(quantized, proto, _fed_float(target, floats), adds, every)
    return quantized


def _fed_float(target: Target, floats: tuple[str, ...]) -> tuple[str, ...]:
    """Return the nodes in float that read float tensors past the pairs of other readers.

    Not where the writer drops a Relu in front of a pair, whose clamping at the zero-point does
    its work.
    """
    return floats if LAYOUTS[target.layout].keeps_activations else ()


def _write(
    proto: onnx.ModelProto,
    ranges: Ranges,
    target: Target,
    per_channel: bool,
    floats: tuple[str, ...],
) -> onnx.ModelProto:
    inner = _inner_tensors(proto)
    found = _ranges(proto, inner, ranges, target)
    signed = _signed(proto, found, target)
    found |= {name: around_zero(*found[name]) for name in signed}
    quantizer = _writer(proto, target, per_channel, floats, signed)
    index_model(quantizer)
    calibrate = require("onnxruntime.quantization.calibrate", "", "Quantizing")
    tensors = {
        name: calibrate.TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in found.items()
    }
    quantizer.tensors_range = calibrate.TensorsData(calibrate.CalibrationMethod.MinMax, tensors)
    quantizer.quantization_params = quantizer.calc_graph_quant_params()
    # The logits stay in float: a Gemm writes them at no cost, and 8 bits would cost accuracy.
    outputs = {value.name for value in proto.graph.output}
    for method in ("quantize_activation_tensor", "quantize_output_same_as_input"):
        setattr(quantizer, method, _without(getattr(quantizer, method), outputs))
    quantizer.quantize_model()
    quantizer.model.finish()
    quantizer.model.topological_sort()
    result: onnx.ModelProto = quantizer.model.model
    stray = set(inner) & set(describe_quantization(result).activations)
    if stray:
        raise RuntimeError(f"quantized between a layer and its activation: {sorted(stray)}")
    return result


def _writer(
    proto: onnx.ModelProto,
    target: Target,
    per_channel: bool,
    floats: tuple[str, ...],
    signed: Collection[str],
) -> Any:
    """Return onnxruntime's QDQQuantizer for a target, without ranges.

    signed: tensors that are symmetric int8, whatever the others are.
    """
    quantization = require("onnxruntime.quantization", "", "Quantizing")
    writer = require("onnxruntime.quantization.qdq_quantizer", "", "Quantizing")
    kinds = {"uint8": quantization.QuantType.QUInt8, "int8": quantization.QuantType.QInt8}
    layout = LAYOUTS[target.layout]
    options = dict(layout.options)
    if signed:
        kind = {"quant_type": quantization.QuantType.QInt8, "symmetric": True}
        options["TensorQuantOverrides"] = {name: [dict(kind)] for name in signed}
    return writer.QDQQuantizer(
        onnx.shape_inference.infer_shapes(proto),
        per_channel=per_channel,
        reduce_range=target.reduce_range,
        weight_qType=quantization.QuantType.QInt8,
        activation_qType=kinds[target.activations],
        tensors_range=None,
        nodes_to_quantize=[],
        nodes_to_exclude=[*floats, *layout.skip(proto)],
        op_types_to_quantize=layout.known_op_types(),
        extra_options=options,
    )


def _ranges(
    proto: onnx.ModelProto, inner: Mapping[str, str], ranges: Ranges, target: Target
) -> dict[str, tuple[float, float]]:
    """Return the range of every tensor that the writer may ask for, on the target's grid."""
    rectified = {
        inner.get(n.output[0], n.output[0]) for n in proto.graph.node if n.op_type == "Relu"
    }
    found = {}
    for name in (*activation_tensors(proto), *inner):
        # The writer asks for the range of an inner tensor too, and then does not use it.
        low, high = ranges.range_of(inner.get(name, name), target.grid)
        if name in rectified:
            low, high = 0.0, high or _DEAD[target.grid]
        found[name] = (low, high)
    return LAYOUTS[target.layout].ranges(proto, found)


def _signed(
    proto: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]], target: Target
) -> list[str]:
    """Return the tensors that are symmetric int8 whatever the target's activations are."""
    if not LAYOUTS[target.layout].signed_int8:
        return []
    given = {value.name for value in proto.graph.input}
    return [name for name, (low, _) in ranges.items() if low < 0 and name not in given]


def _without(method: Callable[..., None], outputs: set[str]) -> Callable[..., None]:
    """Return the writer's method, doing nothing for a tensor that is a graph output."""

    def call(tensor: str, *rest: Any) -> None:
        if tensor not in outputs:
            method(tensor, *rest)

    return call


def _require_separable(proto: onnx.ModelProto, names: tuple[str, ...]) -> None:
    """Refuse to leave an activation in float without the layer that it belongs to."""
    inner = _inner_tensors(proto)
    producers = {tensor: node for node in proto.graph.node for tensor in node.output}
    for node in proto.graph.node:
        source = node.input[0] if node.op_type in ("Relu", "Clip") else ""
        if node.name in names and source in inner and producers[source].name not in names:
            raise UserError(
                f'node "{node.name}" is one kernel with "{producers[source].name}".',
                "Exclude that one, or both.",
            )


def require_float(proto: onnx.ModelProto, model: Path) -> None:
    """Refuse a file that is quantized already, takes pixels, or has nothing to quantize."""
    require_float_input(proto, model)
    summary = describe_quantization(proto)
    if summary.quantized_layers or summary.activations:
        raise UserError(f"{model} is quantized already.", "Give the FP32 file that export wrote.")
    if not summary.layers:
        raise UserError(f"{model} has no convolution or Gemm to quantize.")
