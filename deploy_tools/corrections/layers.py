"""The layers with weights of a graph, each in one form whatever its operator."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Weights = NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """One Conv, Gemm or MatMul whose weights are an initializer that nothing else reads.

    groups: of a Conv, else 1. transposed: the file keeps the weights as (in, out).
    bias: name of the bias initializer, "" where there is none.
    """

    node: onnx.NodeProto
    weight: str
    bias: str
    groups: int
    transposed: bool

    @property
    def name(self) -> str:
        """The node's name."""
        return str(self.node.name)

    @property
    def input(self) -> str:
        """The activation that it reads."""
        return str(self.node.input[0])

    @property
    def output(self) -> str:
        """The tensor that it writes."""
        return str(self.node.output[0])


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes by name."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def layers_of(proto: onnx.ModelProto) -> tuple[Layer, ...]:
    """Return the layers that corrections may change, in graph order.

    Left out: weights that are computed, or shared with another node; a bias that is not one
    value an output; a Gemm with alpha or beta other than 1 or a transposed input; a Conv without
    spatial axes. The graph is one that `prepared` returned: every node has a name of its own.
    """
    tensors = {t.name: t for t in proto.graph.initializer}
    readers = Counter(name for node in proto.graph.node for name in node.input)
    found = []
    for node in proto.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or len(node.input) < 2:
            continue
        weight = tensors.get(node.input[1])
        if weight is None or readers[weight.name] > 1 or node.input[0] in tensors:
            continue
        values = attributes(node)
        bias = node.input[2] if len(node.input) > 2 else ""
        if bias and (bias not in tensors or readers[bias] > 1):
            continue
        if node.op_type == "Conv" and len(weight.dims) > 2:
            layer = Layer(node, weight.name, bias, values.get("group", 1), False)
        elif node.op_type != "Conv" and len(weight.dims) == 2 and _plain(values):
            layer = Layer(node, weight.name, bias, 1, not values.get("transB", 0))
        else:
            continue
        # ONNX lets one value, or one a row, stand for all outputs of a Gemm.
        outputs = weight.dims[1 if layer.transposed else 0]
        if not bias or tensors[bias].dims[-1:] == [outputs] == [math.prod(tensors[bias].dims)]:
            found.append(layer)
    return tuple(found)


def _plain(values: Mapping[str, Any]) -> bool:
    scaled = values.get("alpha", 1.0) != 1.0 or values.get("beta", 1.0) != 1.0
    return not scaled and not values.get("transA", 0)


class Parameters:
    """The weights of a copy of a graph, read and written as (out, in / groups, positions)."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(proto)
        self._tensors = {t.name: t for t in self.proto.graph.initializer}

    def weight(self, layer: Layer) -> Weights:
        """Return the weights, float32, (out, in / groups, positions of the kernel)."""
        values = numpy_helper.to_array(self._tensors[layer.weight]).astype(np.float32)
        if layer.transposed:
            values = values.T
        return np.ascontiguousarray(values.reshape(values.shape[0], values.shape[1], -1))

    def set_weight(self, layer: Layer, values: NDArray[Any]) -> None:
        """Write what `weight` returned, changed, back into the copy."""
        tensor = self._tensors[layer.weight]
        shaped = values.reshape(values.shape[0], -1).T if layer.transposed else values
        self._write(tensor, shaped.reshape(tuple(tensor.dims)))

    def bias(self, layer: Layer) -> Weights | None:
        """Return the bias, (out,), None where the layer has none."""
        if not layer.bias:
            return None
        values: Weights = numpy_helper.to_array(self._tensors[layer.bias]).astype(np.float32)
        return values

    def set_bias(self, layer: Layer, values: NDArray[Any]) -> None:
        """Write a bias back; the layer must have one."""
        tensor = self._tensors[layer.bias]
        self._write(tensor, values.reshape(tuple(tensor.dims)))

    def _write(self, tensor: onnx.TensorProto, values: NDArray[Any]) -> None:
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
