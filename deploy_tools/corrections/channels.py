"""Which channels of a graph's tensors must be scaled by one factor so that the model stays the same.

Scaling a channel by a positive factor passes through Relu, pools and slices; an Add ties the
channels of both sides to each other; a layer with weights takes any factor of its input channels
and gives its output channels new ones (Nagel et al. 2019, Data-Free Quantization, section 4.1;
here also across the residual Adds). The model's input and output, and whatever an operator not
known here touches, keep the factor 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from deploy_tools.corrections.layers import Layer, Parameters, attributes, layers_of
from deploy_tools.onnx_files import real_inputs

Ids = NDArray[np.int64]

_SAME = (
    "Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool",
    "Identity", "Dropout",
)  # fmt: skip


@dataclass(frozen=True)
class Channels:
    """ids: tensor name -> (channels,), equal ids scale together. free: (ids,), may be scaled."""

    ids: Mapping[str, Ids]
    free: NDArray[np.bool_]


def channels_of(proto: onnx.ModelProto) -> Channels:
    """Return the channel ids of every tensor with a channel axis (axis 1)."""
    walk = _Walk(proto)
    for value in real_inputs(proto):
        walk.pin([value.name])
    for node in proto.graph.node:
        walk.follow(node)
    walk.pin([value.name for value in proto.graph.output])
    return walk.result()


class _Walk:
    def __init__(self, proto: onnx.ModelProto) -> None:
        inferred = onnx.shape_inference.infer_shapes(proto).graph
        self._shapes = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*inferred.value_info, *inferred.input, *inferred.output)
        }
        self._constants = {t.name: t for t in proto.graph.initializer}
        self._layers: dict[str, Layer] = {layer.output: layer for layer in layers_of(proto)}
        self._parents: list[int] = []
        self._pinned: list[int] = []
        self._ids: dict[str, Ids] = {}
        self._handlers: dict[str, Callable[[onnx.NodeProto], Sequence[Ids] | None]] = {
            **dict.fromkeys(_SAME, self._same),
            **dict.fromkeys(("Conv", "Gemm", "MatMul"), self._layer),
            **dict.fromkeys(("Reshape", "Flatten", "Squeeze"), self._flat),
            **dict.fromkeys(("ReduceMean", "ReduceMax"), self._reduced),
            "Add": self._added, "Mul": self._gated, "Concat": self._concatenated,
            "Split": self._split, "Slice": self._sliced, "Pad": self._padded,
        }  # fmt: skip

    def follow(self, node: onnx.NodeProto) -> None:
        """Give the node's outputs their ids; pin all around it where it is not understood."""
        handler = self._handlers.get(node.op_type)
        found = handler(node) if handler else None
        if found is None:
            self.pin([name for name in node.input if name in self._ids])
            self.pin(node.output)
            return
        self._ids |= dict(zip(node.output, found, strict=False))

    def pin(self, tensors: Sequence[str]) -> None:
        """Keep the factor 1 for these tensors."""
        for name in tensors:
            if name not in self._ids:
                self._ids[name] = self._new(self._count(name))
            self._pinned += self._ids[name].tolist()

    def result(self) -> Channels:
        roots = np.array([self._root(i) for i in range(len(self._parents))], np.int64)
        names, compact = np.unique(roots, return_inverse=True)
        free = np.ones(len(names), bool)
        free[compact[self._pinned]] = False
        return Channels({name: compact[ids] for name, ids in self._ids.items()}, free)

    def _count(self, name: str) -> int:
        shape = self._shapes.get(name, [])
        return int(shape[1]) if len(shape) > 1 else 0

    def _new(self, count: int) -> Ids:
        start = len(self._parents)
        self._parents += range(start, start + count)
        return np.arange(start, start + count)

    def _root(self, i: int) -> int:
        while self._parents[i] != i:
            self._parents[i] = self._parents[self._parents[i]]
            i = self._parents[i]
        return i

    def _same(self, node: onnx.NodeProto) -> Sequence[Ids] | None:
        ids = self._ids.get(node.input[0])
        return None if ids is None else [ids]

    def _layer(self, node: onnx.NodeProto) -> Sequence[Ids] | None:
        layer = self._layers.get(node.output[0])
        if layer is None or layer.input not in self._ids:
            return None
        # A MatMul's columns are its last axis: the channel axis only where it has two.
        if node.op_type != "Conv" and len(self._shapes.get(node.output[0], [])) != 2:
            return None
        # Where the shapes do not say how many channels there are, nothing can be scaled.
        weight = self._constants[layer.weight].dims
        out, inner = (weight[1], weight[0]) if layer.transposed else (weight[0], weight[1])
        if len(self._ids[layer.input]) != inner * layer.groups:
            return None
        return [self._new(out)] if self._count(node.output[0]) == out else None

    def _added(self, node: onnx.NodeProto) -> Sequence[Ids] | None:
        sides = [self._ids.get(name) for name in node.input]
        first, second = sides[0], sides[1]
        if first is None or second is None or len(first) != len(second):
            return None
        # Broadcasting lines up the last axes: the channels only where there are as many.
        if len({len(self._shapes.get(name, [])) for name in node.input}) != 1:
            return None
        for a, b in zip(first, second, strict=True):
            low, high = sorted((self._root(int(a)), self._root(int(b))))
            self._parents[high] = low
        return [first]

    def _gated(self, node: onnx.NodeProto) -> Sequence[Ids] | None:
        """A squeeze-and-excite gate: one factor a channel, which stays as it is."""
        first, second = node.input
        if first not in self._ids or second not in self._ids:
            return None
        if self._spatial(first) < self._spatial(second):
            first, second = second, first
        if self._spatial(second) != 1 or len(self._ids[first]) != len(self._ids[second]):
            return None
        self.pin([second])
        return [self._ids[first]]

    def _spatial(self, name: str) -> int:
        """How many positions a channel has; 0 where that is not known."""
        shape = self._shapes.get(name, [])
        return int(np.prod(shape[2:])) if len(shape) > 1 else 0

    def _flat(self, node: onnx.NodeProto) -> Sequence[Ids] | None:
        ids = self._ids.get(node.input[0])
        positions, count = self._spatial(node.input[0]), self._count(node.output[0])
        if ids is None or not positions or len(ids) * positions != count:
            return None
        if len(self._shapes.get(node.output[0], [])) != 2:
            return None
        return [np.repeat(ids, positions)]

    def _reduced(self, node: onnx.NodeProto) -> Sequence[Ids] | None:
        axes = attributes(node).get("axes")
        if axes is None and len(node.input) > 1:
            axes = self._value(node.input[1])
        rank = len(self._shapes.get(node.input[0], []))
        if axes is None or not rank or {int(a) % rank for a in axes} != set(range(2, rank)):
            return None
        return self._same(node)

    def _concatenated(self, node: onnx.NodeProto) -> Sequence[Ids] | None:
        if attributes(node).get("axis") != 1 or not all(n in self._ids for n in node.input):
            return None
        return [np.concatenate([self._ids[name] for name in node.input])]

    def _split(self, node: onnx.NodeProto) -> Sequence[Ids] | None:
        ids = self._ids.get(node.input[0])
        counts = [self._count(name) for name in node.output]
        if attributes(node).get("axis", 0) != 1 or ids is None or sum(counts) != len(ids):
            return None
        return np.split(ids, np.cumsum(counts)[:-1])

    def _sliced(self, node: onnx.NodeProto) -> Sequence[Ids] | None:
        ids = self._ids.get(node.input[0])
        parts = [self._value(name) if name else None for name in node.input[1:]]
        if ids is None or len(parts) < 3 or any(part is None for part in parts):
            return None
        starts, ends, axes, steps = [*parts, [1] * len(parts[0] or [])][:4]
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):  # type: ignore[arg-type]
            if axis < 0 or axis == 0:
                return None
            if axis == 1:
                ids = ids[slice(start, end, step)]
        return [ids]

    def _padded(self, node: onnx.NodeProto) -> Sequence[Ids] | None:
        """Channels of zeros take any factor: zero stays zero."""
        ids = self._ids.get(node.input[0])
        pads = self._value(node.input[1]) if len(node.input) > 1 else None
        filled = self._value(node.input[2]) if len(node.input) > 2 and node.input[2] else [0]
        mode = attributes(node).get("mode", b"constant")
        if ids is None or pads is None or filled is None or any(filled) or len(node.input) > 3:
            return None
        if mode not in (b"constant", "constant") or min(pads) < 0:
            return None
        before, after = int(pads[1]), int(pads[len(pads) // 2 + 1])
        return [np.concatenate([self._new(before), ids, self._new(after)])]

    def _value(self, name: str) -> list[int] | None:
        if name not in self._constants:
            return None
        values: list[int] = np.atleast_1d(numpy_helper.to_array(self._constants[name])).tolist()
        return values


def scaled(
    proto: onnx.ModelProto, channels: Channels, factors: NDArray[np.float64]
) -> onnx.ModelProto:
    """Return a copy whose tensors' channels are multiplied by factors[id], logits unchanged.

    factors: (ids,), positive, 1 for the ids that are not free.
    """
    parameters = Parameters(proto)
    for layer in layers_of(proto):
        ids_in, ids_out = channels.ids.get(layer.input), channels.ids.get(layer.output)
        if ids_in is None or ids_out is None:
            continue
        weight = parameters.weight(layer).astype(np.float64)
        if (len(ids_out), len(ids_in)) != (weight.shape[0], weight.shape[1] * layer.groups):
            continue  # channels_of has pinned both sides of such a layer
        bias = parameters.bias(layer)
        out = factors[ids_out]
        into = factors[ids_in].reshape(layer.groups, -1)  # (groups, in / groups)
        each = np.repeat(into, len(out) // layer.groups, axis=0)  # (out, in / groups)
        parameters.set_weight(layer, weight * out[:, None, None] / each[:, :, None])
        if bias is not None:
            parameters.set_bias(layer, bias * out)
    return parameters.proto
