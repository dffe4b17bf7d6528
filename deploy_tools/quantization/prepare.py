"""Bring a graph into the form that the writers rely on: every node named, weights as initializers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import numpy_helper

from deploy_tools.onnx_files import remove_where

_DTYPES = {
    "value_float": np.float32, "value_floats": np.float32,
    "value_int": np.int64, "value_ints": np.int64,
}  # fmt: skip


def prepared(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose nodes have unique names and whose Constant nodes are initializers.

    Both are optional in ONNX, and the writers of onnxruntime go by name and look for weights
    among the initializers. A node without a name of its own takes `node_of_TENSOR`, as
    TensorRT's parser names it, after its first output.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    _lift_constants(copy.graph)
    seen = Counter(node.name for node in copy.graph.node)
    for node in copy.graph.node:
        if not node.name or seen[node.name] > 1:
            node.name = f"node_of_{next(iter(node.output), '')}"
    return copy


def _lift_constants(graph: onnx.GraphProto) -> None:
    outputs = {value.name for value in graph.output}
    lifted = set()
    for node in graph.node:
        if node.op_type != "Constant" or node.output[0] in outputs:
            continue
        tensor = _value(node)
        if tensor is not None:
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
            lifted.add(tensor.name)
    remove_where(graph.node, lambda node: node.op_type == "Constant" and node.output[0] in lifted)


def _value(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return a Constant's tensor; None for text and sparse values, which no layer reads."""
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if attribute.name == "value":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(value)
            return tensor
        if attribute.name in _DTYPES:
            return numpy_helper.from_array(np.array(value, _DTYPES[attribute.name]))
    return None
