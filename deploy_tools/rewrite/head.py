"""The form of what lies between the last convolution and the logits.

A mean over height and width is ReduceMean or GlobalAveragePool, and dropping the two axes of
size 1 behind it is Reshape or Flatten. Exporters and runtimes differ in which they like.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from deploy_tools.onnx_files import remove_where

_IMAGE_RANK = 4


@dataclass(frozen=True)
class _Known:
    """shapes: of the tensors, 0 where a size is not known. integers: stored int64 tensors."""

    graph: onnx.GraphProto
    shapes: Mapping[str, list[int]]
    integers: Mapping[str, list[int]]

    def is_image(self, tensor: str) -> bool:
        return len(self.shapes.get(tensor, [])) == _IMAGE_RANK


_Rewrite = Callable[[_Known, onnx.NodeProto], onnx.NodeProto | None]
"""Gives what takes the place of a node, None where it stays."""


def with_global_average_pool(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which each mean over height and width is a GlobalAveragePool."""
    return _rewritten(proto, _pool)


def with_reduce_mean(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which each GlobalAveragePool of an image is a ReduceMean."""
    return _rewritten(proto, _mean)


def with_flatten(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which each Reshape that only keeps the batch is a Flatten."""
    return _rewritten(proto, _flatten)


def with_reshape(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which each Flatten behind the batch is a Reshape to (0, -1)."""
    return _rewritten(proto, _reshape)


def _rewritten(proto: onnx.ModelProto, rewrite: _Rewrite) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    graph = changed.graph
    known = _known(changed)
    for node in graph.node:
        made = rewrite(known, node)
        if made is not None:
            node.CopyFrom(made)
    read = {tensor for node in graph.node for tensor in node.input}
    read |= {value.name for value in graph.output}
    remove_where(graph.initializer, lambda tensor: tensor.name not in read)
    return changed


def _known(proto: onnx.ModelProto) -> _Known:
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    integers = {
        tensor.name: numpy_helper.to_array(tensor).reshape(-1).tolist()
        for tensor in proto.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT64
    }
    return _Known(proto.graph, shapes, integers)


def _pool(known: _Known, node: onnx.NodeProto) -> onnx.NodeProto | None:
    if node.op_type != "ReduceMean" or not _attribute(node, "keepdims", 1):
        return None
    stored = len(node.input) > 1
    axes = known.integers.get(node.input[1]) if stored else _attribute(node, "axes", ())
    if not known.is_image(node.input[0]) or axes is None:
        return None
    if {axis % _IMAGE_RANK for axis in axes} != {2, 3}:
        return None
    return helper.make_node("GlobalAveragePool", node.input[:1], node.output, node.name)


def _mean(known: _Known, node: onnx.NodeProto) -> onnx.NodeProto | None:
    if node.op_type != "GlobalAveragePool" or not known.is_image(node.input[0]):
        return None
    inputs = [node.input[0], _stored(known.graph, node, "axes", [2, 3])]
    return helper.make_node("ReduceMean", inputs, node.output, node.name, keepdims=1)


def _flatten(known: _Known, node: onnx.NodeProto) -> onnx.NodeProto | None:
    if node.op_type != "Reshape" or _attribute(node, "allowzero", 0):
        return None
    shape, before = known.integers.get(node.input[1]), known.shapes.get(node.input[0], [])
    whole = int(np.prod(before[1:])) if len(before) > 1 else 0  # 0 where a size is not known
    if shape != [0, -1] and not (whole and shape in ([0, whole], [-1, whole])):
        return None
    return helper.make_node("Flatten", node.input[:1], node.output, node.name, axis=1)


def _reshape(known: _Known, node: onnx.NodeProto) -> onnx.NodeProto | None:
    if node.op_type != "Flatten" or _attribute(node, "axis", 1) != 1:
        return None
    inputs = [node.input[0], _stored(known.graph, node, "shape", [0, -1])]
    return helper.make_node("Reshape", inputs, node.output, node.name)


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default


def _stored(graph: onnx.GraphProto, node: onnx.NodeProto, what: str, values: list[int]) -> str:
    name = f"{node.name or node.output[0]}.{what}"
    graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    return name
