"""An ONNX graph as a torch module: its weights can be trained and written back into the file.

Own code, since no converter fits: onnx2torch, the best kept one, has no QuantizeLinear and
DequantizeLinear (its issue 124) and makes modules whose parameters have lost the initializers'
names, which are what takes trained weights back into the file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from deploy_tools.errors import UnsupportedGraphError, UserError
from deploy_tools.training.onnx_operators import Inputs, Node, Run, runner_of

LAYERS = ("Conv", "Gemm", "MatMul")
"""Operators whose weights and biases are trained."""


class OnnxModule(nn.Module):
    """Runs a float or Q/DQ graph with one image input: (N, C, H, W) -> logits (N, classes).

    The float initializers that Conv, Gemm and MatMul read (weights, biases) are Parameters, all
    other initializers are buffers. Raises UserError, naming the node, for an operator or a form
    of one that is not known.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        super().__init__()
        constants = dict(_constants(proto))
        given = [value.name for value in proto.graph.input if value.name not in constants]
        if len(given) != 1:
            raise UnsupportedGraphError(
                f"the graph must have one input, it has: {', '.join(given) or 'none'}."
            )
        self.input_name = given[0]
        self.output_name: str = proto.graph.output[0].name
        self.nodes = tuple(_nodes(proto, constants))
        self.weights = nn.ParameterList()
        self._weight_index: dict[str, int] = {}
        self._constant_names: dict[str, str] = {}
        self._keep_constants(constants)
        self._runs = tuple(self.runner(node) for node in self.nodes)
        self._last_use = {t: at for at, node in enumerate(self.nodes) for t in node.inputs}

    def runner(self, node: Node) -> Run | None:
        """Return what runs a node; None where `run_node` of a subclass does it without."""
        return runner_of(node)

    def run_node(self, at: int, inputs: Inputs) -> Tensor:
        """Run the node at a position of `nodes` on the values of its inputs."""
        run = self._runs[at]
        if run is None:
            raise UserError(f'node "{self.nodes[at].name}" has nothing that runs it.')
        return run(inputs)

    @property
    def weight_names(self) -> tuple[str, ...]:
        """Names of the initializers that are Parameters."""
        return tuple(self._weight_index)

    def weight(self, name: str) -> nn.Parameter:
        """Return the Parameter of an initializer; KeyError where it is none."""
        found: nn.Parameter = self.weights[self._weight_index[name]]
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return self.values(images, (self.output_name,))[self.output_name]

    def values(self, images: Tensor, tensors: Collection[str]) -> dict[str, Tensor]:
        """Return the values of these tensors, the input and the logits among them on request."""
        return dict(self.each_value(images, tensors))

    def each_value(self, images: Tensor, tensors: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield these tensors by name as soon as each is made, in graph order.

        Only what later nodes read stays in memory, and what the caller keeps.
        """
        values = self._start(images)
        missing = set(tensors)
        # A fake-quantized weight or bias has the name of what it is made from.
        made = {node.outputs[0] for node in self.nodes}
        for name in tensors:
            if name in values and name in missing and name not in made:
                missing.discard(name)
                yield name, values[name]
        for at, node in enumerate(self.nodes):
            if not missing:
                return
            inputs = [values[name] if name else None for name in node.inputs]
            output = node.outputs[0]
            values[output] = self.run_node(at, inputs)
            if output in missing:
                missing.discard(output)
                yield output, values[output]
            for name in (*node.inputs, output):
                if self._last_use.get(name, at) == at:
                    values.pop(name, None)
        for name in tensors:
            if name in missing:
                raise UserError(f'the graph has no tensor "{name}".')

    def _start(self, images: Tensor) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {self.input_name: images}
        for name, attribute in self._constant_names.items():
            values[name] = getattr(self, attribute)
        for name in self._weight_index:
            values[name] = self.weight(name)
        return values

    def _keep_constants(self, constants: Mapping[str, NDArray[Any]]) -> None:
        trained = {
            name
            for node in self.nodes
            if node.op in LAYERS
            for name in node.inputs[1:]
            if name in constants and constants[name].dtype == np.float32
        }
        for name, value in constants.items():
            if name in trained:
                self.add_weight(name, value)
            else:
                attribute = f"constant_{len(self._constant_names)}"
                self.register_buffer(attribute, torch.from_numpy(np.array(value)), persistent=False)
                self._constant_names[name] = attribute

    def add_weight(self, name: str, value: NDArray[np.float32]) -> None:
        """Make an initializer a Parameter; the second time nothing happens."""
        if name not in self._weight_index:
            self._weight_index[name] = len(self.weights)
            self.weights.append(nn.Parameter(torch.from_numpy(np.array(value, np.float32))))


def logits_of(module: nn.Module, images: Tensor, batch: int = 250) -> Tensor:
    """Run images through a module in batches, without gradients: (N, C, H, W) -> (N, classes)."""
    with torch.no_grad():
        return torch.cat([module(images[at : at + batch]) for at in range(0, len(images), batch)])


def with_weights(proto: onnx.ModelProto, weights: Mapping[str, Tensor]) -> onnx.ModelProto:
    """Return a copy of a graph in which these initializers have other values.

    Raises UserError where a name is no initializer or a shape differs.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    stored = {tensor.name: tensor for tensor in copy.graph.initializer}
    for name, value in weights.items():
        if name not in stored or tuple(stored[name].dims) != tuple(value.shape):
            raise UserError(f'the graph has no initializer "{name}" of shape {tuple(value.shape)}.')
        array = value.detach().cpu().numpy().astype(np.float32)
        stored[name].CopyFrom(numpy_helper.from_array(array, name))
    return copy


def _constants(proto: onnx.ModelProto) -> Iterator[tuple[str, NDArray[Any]]]:
    for tensor in proto.graph.initializer:
        yield tensor.name, numpy_helper.to_array(tensor)
    for node in proto.graph.node:
        if node.op_type == "Constant":
            yield node.output[0], _value(node)


def _value(node: onnx.NodeProto) -> NDArray[Any]:
    kinds = {
        "value_float": np.float32, "value_floats": np.float32,
        "value_int": np.int64, "value_ints": np.int64,
    }  # fmt: skip
    attribute = node.attribute[0]
    if attribute.name == "value":
        return np.asarray(numpy_helper.to_array(attribute.t))
    if attribute.name not in kinds:
        raise UnsupportedGraphError(
            f'node "{node.name}" (Constant) holds {attribute.name}, not numbers.'
        )
    return np.array(onnx.helper.get_attribute_value(attribute), kinds[attribute.name])


def _nodes(proto: onnx.ModelProto, constants: Mapping[str, NDArray[Any]]) -> Iterator[Node]:
    for node in proto.graph.node:
        if node.op_type != "Constant":
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            name = node.name or f"node_of_{node.output[0]}"
            yield Node(
                node.op_type, name, tuple(node.input), tuple(node.output), attributes, constants
            )
