"""Which input of a residual Add is its main branch."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping

import onnx

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_Way = tuple[int, int]  # layers with weights, then nodes: a shortcut may be three Slices long


def main_branches(proto: onnx.ModelProto) -> dict[str, str]:
    """Return, for every residual Add by node name, the input tensor of its main branch.

    The main branch is the input with the longer way back to the last common ancestor of both,
    counted in layers with weights and then in nodes; the first input where both are as long.
    An Add with a constant, or of a tensor with itself, is no residual.
    """
    producers = {
        tensor: position
        for position, node in enumerate(proto.graph.node)
        for tensor in node.output
        if tensor
    }
    known = {
        tensor for node in proto.graph.node if node.op_type != "Constant" for tensor in node.output
    }
    known |= {value.name for value in proto.graph.input}
    known -= {"", *(tensor.name for tensor in proto.graph.initializer)}
    found = {}
    for node in proto.graph.node:
        if node.op_type != "Add" or node.input[0] == node.input[1]:
            continue
        if all(tensor in known for tensor in node.input):
            found[node.name] = _longer(proto, producers, known, node.input[0], node.input[1])
    return found


def _longer(
    proto: onnx.ModelProto,
    producers: Mapping[str, int],
    known: Collection[str],
    first: str,
    second: str,
) -> str:
    """Walk back from both inputs, latest node first, until a node is reached from both."""
    ways: dict[int, dict[str, _Way]] = {}
    waiting: list[int] = []

    def reach(tensor: str, branch: str, way: _Way) -> None:
        position = producers.get(tensor, -1)  # -1: the graph's input
        if position not in ways:
            ways[position] = {}
            heapq.heappush(waiting, -position)
        ways[position][branch] = max(way, ways[position].get(branch, (0, 0)))

    reach(first, first, (0, 0))
    reach(second, second, (0, 0))
    while waiting:
        position = -heapq.heappop(waiting)
        reached = ways[position]
        if len(reached) == 2 or position < 0:
            return second if reached.get(second, (0, 0)) > reached.get(first, (0, 0)) else first
        ((branch, (layers, nodes)),) = reached.items()
        node = proto.graph.node[position]
        step = (layers + (node.op_type in _LAYERS), nodes + 1)
        for tensor in node.input:
            if tensor in known:
                reach(tensor, branch, step)
    return first
