"""Which inputs of which nodes a Q/DQ file quantizes, and on which grid.

Read from the file that the one writer made, so that what is judged is what would be deployed.
The writer drops a Relu whose output it quantizes: the pair's zero-point clamps in its place. Here
the float graph keeps its Relu, so a tensor taken off its grid is still clamped at zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from deploy_tools.sensitivity.grids import Grid

_LEVELS = {np.dtype(np.uint8): (0, 255), np.dtype(np.int8): (-128, 127)}


@dataclass(frozen=True)
class NodePlan:
    """One node of the file: what its inputs are, by position.

    tensors: activations that it reads through a Q/DQ pair, with the pair's grid.
    stored: its weights and bias as they come back from integers, float32.
    """

    tensors: Mapping[int, Grid]
    stored: Mapping[int, NDArray[np.float32]]


def plan_of(quantized: onnx.ModelProto) -> dict[str, NodePlan]:
    """Return the plan of every node, by name, that reads anything from integers."""
    stored = {tensor.name: tensor for tensor in quantized.graph.initializer}
    producers = {tensor: node for node in quantized.graph.node for tensor in node.output}
    plans = {}
    for node in quantized.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        tensors: dict[int, Grid] = {}
        weights: dict[int, NDArray[np.float32]] = {}
        for position, name in enumerate(node.input):
            pair = producers.get(name)
            if pair is None or pair.op_type != "DequantizeLinear":
                continue
            if pair.input[0] in stored:
                weights[position] = _dequantized(pair, stored)
            else:
                tensors[position] = _grid(pair, stored)
        if tensors or weights:
            plans[node.name] = NodePlan(tensors, weights)
    return plans


def with_stored(proto: onnx.ModelProto, plan: Mapping[str, NodePlan]) -> onnx.ModelProto:
    """Return the float graph that also holds, unread, the planned weights and biases as they
    come back from integers, under the names of `stored_name`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for node, planned in plan.items():
        for position, values in planned.stored.items():
            name = stored_name(node, position)
            copy.graph.initializer.append(numpy_helper.from_array(values, name))
    return copy


def stored_name(node: str, position: int) -> str:
    """Return the name of a node's weights (1) or bias (2) as they come back from integers."""
    return f"{node}:stored:{position}"


def quantized_graph(proto: onnx.ModelProto, plan: Mapping[str, NodePlan]) -> onnx.ModelProto:
    """Return the float graph with what the plan quantizes simulated in float.

    A planned activation is read through a Q/DQ pair, one for each tensor and grid; planned weights
    and biases are read as `with_stored` has them. Every name of the float graph stays.
    """
    copy = with_stored(proto, plan)
    nodes: list[onnx.NodeProto] = []
    made: dict[tuple[str, Grid], str] = {}
    for original in proto.graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        planned = plan.get(node.name, NodePlan({}, {}))
        for position, grid in planned.tensors.items():
            key = (node.input[position], grid)
            if key not in made:
                made[key] = f"{node.input[position]}:int8:{len(made)}"
                nodes += _pair(copy.graph, node.input[position], grid, made[key])
            node.input[position] = made[key]
        for position in planned.stored:
            node.input[position] = stored_name(node.name, position)
        nodes.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _pair(graph: onnx.GraphProto, tensor: str, grid: Grid, name: str) -> list[onnx.NodeProto]:
    signed = grid.lowest < 0
    zero = np.array(grid.zero_point, np.int8 if signed else np.uint8)
    constants = [f"{name}:scale", f"{name}:zero"]
    graph.initializer.append(
        numpy_helper.from_array(np.array(grid.scale, np.float32), constants[0])
    )
    graph.initializer.append(numpy_helper.from_array(zero, constants[1]))
    make = onnx.helper.make_node
    return [
        make("QuantizeLinear", [tensor, *constants], [f"{name}:q"], name=f"{name}:quantize"),
        make("DequantizeLinear", [f"{name}:q", *constants], [name], name=f"{name}:dequantize"),
    ]


def _grid(pair: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> Grid:
    scale = float(numpy_helper.to_array(stored[pair.input[1]]))
    zero = numpy_helper.to_array(stored[pair.input[2]])
    lowest, highest = _LEVELS[zero.dtype]
    return Grid(scale, int(zero), lowest, highest)


def _dequantized(
    pair: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]
) -> NDArray[np.float32]:
    whole, scale = (numpy_helper.to_array(stored[name]) for name in pair.input[:2])
    zero = numpy_helper.to_array(stored[pair.input[2]]) if len(pair.input) > 2 else np.zeros(1)
    if scale.size > 1:
        axis = next((a.i for a in pair.attribute if a.name == "axis"), 1)
        shape = [1] * whole.ndim
        shape[axis] = -1
        scale, zero = scale.reshape(shape), np.broadcast_to(zero, scale.size).reshape(shape)
    levels = whole.astype(np.float64) - zero.astype(np.float64)
    return np.asarray((levels * scale.astype(np.float64)).astype(np.float32))
