"""Q/DQ pairs that repeat the pair before them: the same grid twice, with no arithmetic between.

Rounding to a grid a second time changes nothing, so the file computes the same without it.
"""

from __future__ import annotations

import onnx
from onnx import numpy_helper

from deploy_tools.onnx_files import remove_where

_SHAPE_ONLY = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def without_repeated_pairs(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy without pairs whose values lie on their grid already.

    That is where nothing but operators that move values lie between a pair and the one before it,
    and both have one scale and zero-point, for the whole tensor.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    graph = changed.graph
    makers = {tensor: node for node in graph.node for tensor in node.output}
    grids = _Grids(graph)
    instead: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        first = makers.get(node.input[0])
        if first is None or first.op_type != "QuantizeLinear":
            continue
        before = _source(makers, first.input[0])
        grid = grids.of(node)
        if before is None or grid is None:
            continue
        if grids.of(first) == grid == grids.of(before):
            instead[node.output[0]] = first.input[0]
    _bypass(graph, instead)
    return changed


class _Grids:
    """The scale, zero-point and type of pairs with one of each for the whole tensor."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._stored = {tensor.name: tensor for tensor in graph.initializer}

    def of(self, node: onnx.NodeProto) -> tuple[float, int, int] | None:
        """Return the grid of a QuantizeLinear or DequantizeLinear."""
        stored = [self._stored.get(name) for name in node.input[1:3]]
        if len(stored) < 2 or stored[0] is None or stored[1] is None:
            return None
        scale, zero = (numpy_helper.to_array(tensor) for tensor in stored if tensor is not None)
        if scale.size != 1 or zero.size != 1:
            return None
        return float(scale.reshape(())), int(zero.reshape(())), stored[1].data_type


def _source(makers: dict[str, onnx.NodeProto], tensor: str) -> onnx.NodeProto | None:
    """Return the DequantizeLinear that a tensor's values come from, unchanged."""
    node = makers.get(tensor)
    while node is not None and node.op_type in _SHAPE_ONLY:
        node = makers.get(node.input[0])
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _bypass(graph: onnx.GraphProto, instead: dict[str, str]) -> None:
    outputs = {value.name for value in graph.output}
    gone = {tensor: source for tensor, source in instead.items() if tensor not in outputs}
    for node in graph.node:
        node.input[:] = [_end(gone, tensor) for tensor in node.input]
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        read = outputs | {tensor for node in graph.node for tensor in node.input}
        _remove(graph, kind, read)
    read = outputs | {tensor for node in graph.node for tensor in node.input}
    remove_where(graph.initializer, lambda tensor: tensor.name not in read)
    alive = read | {tensor for node in graph.node for tensor in node.output}
    remove_where(graph.value_info, lambda value: value.name not in alive)


def _remove(graph: onnx.GraphProto, kind: str, read: set[str]) -> None:
    remove_where(graph.node, lambda node: node.op_type == kind and node.output[0] not in read)


def _end(gone: dict[str, str], tensor: str) -> str:
    while tensor in gone:
        tensor = gone[tensor]
    return tensor
