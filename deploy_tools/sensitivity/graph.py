"""A graph as a row of nodes that can be cut anywhere: what is alive there, and the parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from deploy_tools.errors import UserError, nearest
from deploy_tools.onnx_files import real_inputs

Array = NDArray[np.generic]


class Graph:
    """An ONNX graph, in its own (topological) order of nodes.

    A cut at position p has the nodes before p on one side and the node at p and those after it
    on the other. Alive there is what is made before it (the model's input included) and read
    after it, or the graph's output: with these tensors the rest can run.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self.nodes = list(proto.graph.node)
        self._places: dict[str, int] = {
            n.name: at for at, n in reversed([*enumerate(self.nodes)])
        }  # the first
        self.stored = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.input = real_inputs(proto)[0].name
        self.output = proto.graph.output[0].name
        self.made = {self.input: 0} | {
            tensor: position + 1
            for position, node in enumerate(self.nodes)
            for tensor in node.output
            if tensor
        }
        self._last_read = {self.output: len(self.nodes)}
        for position, node in enumerate(self.nodes):
            for tensor in (*node.input, *_captured(node)):
                if tensor in self.made:
                    self._last_read[tensor] = max(position, self._last_read.get(tensor, 0))

    def position(self, node: str) -> int:
        """Return the place of a node by name; UserError with the nearest name otherwise."""
        if node in self._places:
            return self._places[node]
        raise UserError(
            f'no node is named "{node}".', nearest(node, [n.name for n in self.nodes if n.name])
        )

    def alive(self, position: int, extra: Mapping[str, int] | None = None) -> tuple[str, ...]:
        """Return the tensors alive at a cut, in the order in which they are made.

        extra: tensor -> last position that reads it too, beyond the graph's own readers.
        """
        extra = extra or {}
        return tuple(
            tensor
            for tensor, made in self.made.items()
            if made <= position
            <= max(self._last_read.get(tensor, -1), extra.get(tensor, -1))
        )  # fmt: skip

    def part(
        self,
        start: int,
        stop: int,
        inputs: Mapping[str, np.dtype[np.generic]],
        outputs: Iterable[str],
    ) -> bytes:
        """Return the nodes start <= p < stop as a model of its own, serialized.

        inputs: the tensors that it is fed, with their element types. No shapes: what one batch
        shows need not hold for the next.
        """
        return model_of(self.proto, self.nodes[start:stop], inputs, outputs, self.stored)


def model_of(
    proto: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, np.dtype[np.generic]],
    outputs: Iterable[str],
    stored: Mapping[str, onnx.TensorProto],
) -> bytes:
    """Return nodes as a serialized model, with those of the `stored` tensors that they read."""
    read = dict.fromkeys(t for node in nodes for t in (*node.input, *_captured(node)))
    graph = onnx.GraphProto(name="part")
    graph.node.extend(nodes)
    graph.initializer.extend(stored[t] for t in read if t in stored and t not in inputs)
    for name, dtype in inputs.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
        graph.input.append(onnx.helper.make_tensor_value_info(name, kind, None))
    for name in outputs:
        graph.output.append(onnx.ValueInfoProto(name=name))
    model = onnx.ModelProto(ir_version=proto.ir_version, graph=graph)
    model.opset_import.extend(proto.opset_import)
    return bytes(model.SerializeToString())


def _captured(node: onnx.NodeProto) -> list[str]:
    """Return what the bodies of an If or Loop read from outside."""
    found = []
    for attribute in node.attribute:
        bodies = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
        for body in bodies:
            for inner in body.node:
                found += [*inner.input, *_captured(inner)]
    return found
