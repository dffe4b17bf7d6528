"""An ONNX graph that is easy to ask: who makes a tensor, who reads it, what is constant."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import onnx
from onnx import TensorProto, helper

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that multiply by weights: where INT8 pays."""


def label(node: onnx.NodeProto) -> str:
    """Return the node's name, or where it has none the tensor that it makes."""
    return str(node.name) or f"{node.op_type} that makes {', '.join(node.output)}"


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """Return an integer attribute."""
    return next((int(item.i) for item in node.attribute if item.name == name), default)


class Graph:
    """One graph and what it may read of the graph around it."""

    def __init__(self, proto: onnx.GraphProto, outer: Graph | None = None) -> None:
        self.proto = proto
        self.nodes = tuple(proto.node)
        self.outputs = {value.name for value in proto.output}
        self._outer = outer
        self._producers = {tensor: node for node in proto.node for tensor in node.output if tensor}
        self._constants = {tensor.name: tensor for tensor in proto.initializer}

    @cached_property
    def readers(self) -> dict[str, list[onnx.NodeProto]]:
        """The nodes that read each tensor, in graph order."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for tensor in node.input:
                found.setdefault(tensor, []).append(node)
        return found

    def walk(self) -> Iterator[Graph]:
        """Yield this graph and those inside its nodes (If, Loop, Scan)."""
        yield self
        for node in self.nodes:
            for item in node.attribute:
                for inner in (*([item.g] if item.HasField("g") else []), *item.graphs):
                    yield from Graph(inner, self).walk()

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        """Return the node that makes a tensor; None for an input or a weight."""
        found = self._producers.get(tensor)
        return self._outer.producer(tensor) if found is None and self._outer else found

    def constant(self, tensor: str) -> onnx.TensorProto | None:
        """Return the value of a weight or Constant, looking through Identity; None for others."""
        if tensor in self._constants:
            return self._constants[tensor]
        node = self._producers.get(tensor)
        if node is None:
            return self._outer.constant(tensor) if self._outer else None
        if node.op_type == "Identity":
            return self.constant(node.input[0])
        return _value_of(node) if node.op_type == "Constant" else None

    def is_constant(self, tensor: str) -> bool:
        """Whether a tensor is the same whatever the input: a weight, quantized or not."""
        while True:
            if not tensor or self.constant(tensor) is not None:
                return True
            node = self.producer(tensor)
            if node is None or node.op_type not in (
                "DequantizeLinear",
                "QuantizeLinear",
                "Transpose",
                "Reshape",
                "Cast",
            ):
                return False
            tensor = node.input[0]

    def dequantizer(self, tensor: str) -> onnx.NodeProto | None:
        """Return the DequantizeLinear that a tensor comes from; operators of `_MOVES` may lie between.

        TensorRT moves Q/DQ across operators that only move values (seen in the build log of
        TensorRT for RTX 1.7; it does not move them across Relu or AveragePool).
        """
        node = self.producer(tensor)
        while node is not None and node.op_type in _MOVES:
            node = self.producer(node.input[0])
        return node if node is not None and node.op_type == "DequantizeLinear" else None


_MOVES = (
    "Flatten",
    "Identity",
    "MaxPool",
    "Pad",
    "Reshape",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)


def _value_of(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return what a Constant node holds; None for text and sparse values."""
    for item in node.attribute:
        if item.name == "value":
            value: onnx.TensorProto = item.t
            return value
        name = node.output[0]
        if item.name == "value_float":
            return helper.make_tensor(name, TensorProto.FLOAT, [], [item.f])
        if item.name == "value_floats":
            return helper.make_tensor(name, TensorProto.FLOAT, [len(item.floats)], item.floats)
        if item.name == "value_int":
            return helper.make_tensor(name, TensorProto.INT64, [], [item.i])
        if item.name == "value_ints":
            return helper.make_tensor(name, TensorProto.INT64, [len(item.ints)], item.ints)
    return None
