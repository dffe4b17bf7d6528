"""The module that QAT trains: made from the Q/DQ file that the writer makes for a target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from deploy_tools.errors import UserError
from deploy_tools.training.fake_quantize import (
    ActivationQuantizer,
    bias_on_grid,
    grid_scale,
    on_grid,
    scale_for_bias,
    straight_through,
)
from deploy_tools.training.onnx_module import LAYERS, OnnxModule
from deploy_tools.training.onnx_operators import Inputs, Node, Run, along, given, integer_limits

_SUFFIX = "_quantized"
"""What the writer appends to the name of an initializer that it quantizes."""


@dataclass(frozen=True)
class Grid:
    """The grid of weights. levels: the largest whole number in the file, 127 or 64.

    bits: weights are rounded to a symmetric grid of this many bits first, and then to the file's
    8-bit one: fewer bits than the file has, simulated.
    """

    levels: int = 127
    bits: int = 8

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise UserError(f"weights can have 2 to 8 bits, got {self.bits}.")


@dataclass(frozen=True)
class _Weight:
    """A weight stored in 8 bits. axis: of its channels, None for one scale a tensor.

    bias: its layer's bias, "" where that is not int32. tensor: what the layer reads, quantized.
    """

    name: str
    axis: int | None
    bias: str = ""
    tensor: str = ""


@dataclass(frozen=True)
class _Bias:
    """A bias stored in int32, whose scale is that of its layer's input times its weight's."""

    weight: _Weight


@dataclass(frozen=True)
class _Quantize:
    """QuantizeLinear of an activation; the DequantizeLinear behind it does nothing more."""

    tensor: str


@dataclass(frozen=True)
class _Nothing:
    """DequantizeLinear of an activation."""


class FakeQuantizedModule(OnnxModule):
    """Computes what a Q/DQ file computes, from float weights, with gradients.

    plan: the Q/DQ file that the writer made of `floats`. learnable: activation ranges are
    trained (LSQ); frozen else. Weights are Parameters, rounded at every forward pass onto the
    grid that the writer would choose for them; so are biases where the file has them in int32.
    """

    def __init__(
        self,
        plan: onnx.ModelProto,
        floats: onnx.ModelProto,
        grid: Grid | None = None,
        learnable: bool = True,
    ) -> None:
        super().__init__(plan)
        self.grid = grid or Grid()
        self.quantizers = nn.ModuleList()
        self._quantizer_index: dict[str, int] = {}
        self._roles: dict[str, _Weight | _Bias | _Quantize | _Nothing] = {}
        self._producers = {node.outputs[0]: node for node in self.nodes}
        self._add_quantizers(learnable)
        self._add_weights({t.name: t for t in floats.graph.initializer})

    def quantizer(self, tensor: str) -> ActivationQuantizer:
        """Return the quantizer of an activation; several may share one."""
        return cast(ActivationQuantizer, self.quantizers[self._quantizer_index[tensor]])

    @property
    def quantized_tensors(self) -> tuple[str, ...]:
        """Names of the activations that the file quantizes."""
        return tuple(self._quantizer_index)

    def runner(self, node: Node) -> Run | None:
        if node.op == "QuantizeLinear" and node.inputs[0] not in node.constants:
            return None
        return super().runner(node)

    def run_node(self, at: int, inputs: Inputs) -> Tensor:
        role = self._roles.get(self.nodes[at].outputs[0])
        match role:
            case None:
                return super().run_node(at, inputs)
            case _Quantize():
                quantized: Tensor = self.quantizer(role.tensor)(inputs[0])
                return quantized
            case _Weight():
                weight = self.weight(role.name)
                return straight_through(weight, self._rounded(role))
            case _Bias():
                bias = self.weight(role.weight.bias)
                return straight_through(bias, bias_on_grid(bias, self._bias_scale(role.weight)))
            case _Nothing():
                return given(inputs, 0)

    def written_weights(self) -> dict[str, Tensor]:
        """Return every trained initializer as it goes into the float file.

        Quantized weights lie on the grid that the writer then chooses again by itself; so the
        file that it writes computes what this module computes.
        """
        found = {name: self.weight(name).detach().clone() for name in self.weight_names}
        for role in self._weights():
            found[role.name] = self._written(role)
        return found

    def _rounded(self, role: _Weight) -> Tensor:
        """Return a weight as its layer sees it; no gradient."""
        weight = self._coarse(role)
        scale = self._scale(role, weight)
        return on_grid(weight, along(scale, weight.ndim, role.axis or 0), self.grid.levels)

    def _written(self, role: _Weight) -> Tensor:
        weight = self._coarse(role)
        own = grid_scale(weight, role.axis, self.grid.levels)
        kept = along(self._scale(role, weight) == own, weight.ndim, role.axis or 0)
        # Where the bias raised the scale, only the weight as it is makes the writer do the same.
        return torch.where(kept, self._rounded(role), weight)

    def _coarse(self, role: _Weight) -> Tensor:
        """Return a weight on the grid of fewer bits; 8 bits: as it is."""
        weight = self.weight(role.name).detach()
        if self.grid.bits == 8:
            return weight
        levels = 2 ** (self.grid.bits - 1) - 1
        scale = grid_scale(weight, role.axis, levels)
        return on_grid(weight, along(scale, weight.ndim, role.axis or 0), levels)

    def _scale(self, role: _Weight, weight: Tensor) -> Tensor:
        scale = grid_scale(weight, role.axis, self.grid.levels)
        if not role.bias:
            return scale
        return scale_for_bias(scale, self.weight(role.bias), self.quantizer(role.tensor).scale())

    def _bias_scale(self, role: _Weight) -> Tensor:
        with torch.no_grad():
            return self.quantizer(role.tensor).scale() * self._scale(role, self._coarse(role))

    def _weights(self) -> Iterator[_Weight]:
        return (role for role in self._roles.values() if isinstance(role, _Weight))

    def _add_quantizers(self, learnable: bool) -> None:
        shared: dict[str, int] = {}
        for node in self.nodes:
            if node.op == "QuantizeLinear" and node.inputs[0] not in node.constants:
                index = shared.get(node.inputs[1])
                if index is None:
                    index = self._index_of_pool_input(node)
                if index is None:
                    index = len(self.quantizers)
                    self.quantizers.append(_quantizer(node, learnable))
                shared[node.inputs[1]] = self._quantizer_index[node.inputs[0]] = index
                self._roles[node.outputs[0]] = _Quantize(node.inputs[0])
            elif isinstance(self._roles.get(node.inputs[0]), _Quantize):
                self._roles[node.outputs[0]] = _Nothing()  # only DequantizeLinear can follow

    def _index_of_pool_input(self, node: Node) -> int | None:
        """Return the quantizer of a max pool's input: the writer gives its output the same grid."""
        pool = self._producers.get(node.inputs[0])
        tensor = self._quantized_input(pool) if pool and pool.op == "MaxPool" else None
        if tensor is None:
            return None
        same, here = self.quantizer(tensor), _quantizer(node, learnable=False)
        equal = float(same.start) == float(here.start) and same.zero_point == here.zero_point
        return self._quantizer_index[tensor] if equal else None

    def _quantized_input(self, node: Node) -> str | None:
        """Return the activation that a node reads through a Q/DQ pair; None for a float one."""
        dequantize = self._producers.get(node.inputs[0])
        role = self._roles.get(dequantize.inputs[0]) if dequantize else None
        return role.tensor if isinstance(role, _Quantize) else None

    def _add_weights(self, floats: dict[str, onnx.TensorProto]) -> None:
        stored = {
            node.outputs[0]: node
            for node in self.nodes
            if node.op == "DequantizeLinear" and node.inputs[0] in node.constants
        }
        for layer in self.nodes:
            if layer.op not in LAYERS or layer.inputs[1] not in stored:
                continue
            weight = stored[layer.inputs[1]]
            name = self._add_float(weight, floats)
            scale = weight.constants[weight.inputs[1]]
            axis = int(weight.get("axis", 1)) if scale.size > 1 else None
            role = _Weight(name, axis)
            tensor = self._quantized_input(layer)
            if layer.has(2) and layer.inputs[2] in stored and tensor is not None:
                bias = self._add_float(stored[layer.inputs[2]], floats)
                role = _Weight(name, axis, bias, tensor)
                self._roles[layer.inputs[2]] = _Bias(role)
            self._roles[layer.inputs[1]] = role

    def _add_float(self, node: Node, floats: dict[str, onnx.TensorProto]) -> str:
        """Make the float initializer behind a stored integer one a Parameter; return its name."""
        name = node.inputs[0].removesuffix(_SUFFIX)
        if name not in floats:
            raise UserError(
                f'the float file has no initializer "{name}", which the Q/DQ file quantizes.',
                "Make the Q/DQ file from this float file.",
            )
        self.add_weight(name, np.asarray(numpy_helper.to_array(floats[name])))
        return name


def _quantizer(node: Node, learnable: bool) -> ActivationQuantizer:
    low, high = integer_limits(node)
    scale, zero = node.constant(1), node.constant(2) if node.has(2) else np.zeros(())
    if scale.size != 1:
        raise node.refusal("has one scale a channel for an activation")
    return ActivationQuantizer(float(scale.item()), int(zero.item()), low, high, learnable)
