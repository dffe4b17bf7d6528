"""Readable, stable names for the nodes and tensors of an exported graph.

The exporter numbers nodes in an order that changes between its versions. Here a Conv or
Gemm is named after its weight (`layer1.0.conv1`) and what follows it after the last named
node and its own kind (`layer1.0.conv1/relu`), so that sensitivity tables, range tables and
engine reports speak of the layers that the user knows.
"""

from __future__ import annotations

import onnx

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def name_after_weights(proto: onnx.ModelProto) -> None:
    """Rename nodes and intermediate tensors in place; inputs, outputs and weights keep theirs."""
    graph = proto.graph
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return  # a subgraph may read any tensor by its old name
    weights = {tensor.name for tensor in graph.initializer}
    kept = weights | {value.name for value in (*graph.input, *graph.output)}
    taken = set(kept)
    renamed: dict[str, str] = {}
    scope_of: dict[str, str] = {}
    for node in graph.node:
        scope = _scope(node, weights, scope_of)
        base = (
            scope if _weight_name(node, weights) else f"{scope}/{node.op_type.lower()}".lstrip("/")
        )
        name = _unused(base, taken)
        taken.add(name)
        node.name = name
        for position, tensor in enumerate(node.output):
            scope_of[tensor] = scope
            if tensor and tensor not in kept:
                renamed[tensor] = name if position == 0 else f"{name}:{position}"
    for node in graph.node:
        node.input[:] = [renamed.get(tensor, tensor) for tensor in node.input]
        node.output[:] = [renamed.get(tensor, tensor) for tensor in node.output]
    for value in graph.value_info:
        value.name = renamed.get(value.name, value.name)


def _weight_name(node: onnx.NodeProto, weights: set[str]) -> str:
    """Return the layer's name where the node holds a weight whose name tells it, else ""."""
    if node.op_type not in _WEIGHTED:
        return ""
    for tensor in node.input[1:2]:
        if tensor in weights and tensor.endswith(".weight"):
            return str(tensor.removesuffix(".weight"))
    return ""


def _scope(node: onnx.NodeProto, weights: set[str], scope_of: dict[str, str]) -> str:
    own = _weight_name(node, weights)
    if own:
        return own
    return next((scope_of[tensor] for tensor in node.input if scope_of.get(tensor)), "")


def _unused(base: str, taken: set[str]) -> str:
    name, number = base, 2
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    return name
