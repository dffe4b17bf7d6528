"""What an item would cost in float, roughly: enough to rank by, not to choose by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import onnx

from deploy_tools.onnx_files import real_inputs
from deploy_tools.sensitivity.items import Item

# A tensor kept in float is written and read with 3 bytes more an element: at 10 GB/s that takes
# as long as 32 multiply-adds of a core that does 50 billion a second.
_ELEMENT = 32.0


def costs_of(
    proto: onnx.ModelProto, items: Iterable[Item], shape: tuple[int, ...]
) -> dict[str, float]:
    """Return each item's cost by name, in multiply-adds an image.

    shape: of one image's input, (1, C, H, W). A layer costs its multiply-adds, a residual branch
    the traffic of its tensor. An item whose shape cannot be inferred counts as one multiply-add.
    """
    sizes = _sizes(proto, shape)
    weights = {tensor.name: math.prod(tensor.dims[1:]) for tensor in proto.graph.initializer}
    nodes = {node.name: node for node in proto.graph.node}
    found = {}
    for item in items:
        node = nodes[item.name]
        if item.kind == "branch":
            found[item.name] = _ELEMENT * sizes.get(node.output[0], 0)
        else:
            found[item.name] = float(sizes.get(node.output[0], 0) * _fan_in(node, weights, proto))
    return {name: max(cost, 1.0) for name, cost in found.items()}


def _fan_in(node: onnx.NodeProto, weights: Mapping[str, int], proto: onnx.ModelProto) -> int:
    """Return how many multiply-adds one output element takes."""
    if node.op_type == "Conv":
        return weights.get(node.input[1], 0)  # (out, in / groups, kernel...)
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}.get(node.input[1])
    if stored is None:
        return 0
    if node.op_type == "ConvTranspose":  # (in, out / groups, kernel...), nearly
        return int(stored.dims[0])
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return int(stored.dims[1] if transposed else stored.dims[0])


def _sizes(proto: onnx.ModelProto, shape: tuple[int, ...]) -> dict[str, int]:
    """Return the elements of every tensor of one image."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.value_info[:]  # the exporter's symbolic sizes would stay
    for dimension, size in zip(real_inputs(copy)[0].type.tensor_type.shape.dim, shape, strict=True):
        dimension.dim_value = size
    inferred = onnx.shape_inference.infer_shapes(copy, data_prop=True).graph
    return {
        value.name: math.prod(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*inferred.value_info, *inferred.output)
    }
