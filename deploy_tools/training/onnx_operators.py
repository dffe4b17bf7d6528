"""ONNX operators as torch functions: those that a ResNet's float or Q/DQ file is made of.

A quantized tensor (between QuantizeLinear and DequantizeLinear) is float32 here and holds whole
numbers: 8 bits are exact in it, and torch's convolutions take nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from deploy_tools.errors import UnsupportedGraphError

Inputs = Sequence[Tensor | None]
Run = Callable[[Inputs], Tensor]


@dataclass(frozen=True)
class Node:
    """One node of the graph. constants: the graph's initializers and Constants, by tensor."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    constants: Mapping[str, NDArray[Any]]

    def get(self, attribute: str, default: Any) -> Any:
        """Return an attribute; ONNX keeps text as bytes."""
        value = self.attributes.get(attribute, default)
        return value.decode() if isinstance(value, bytes) else value

    def has(self, position: int) -> bool:
        """Whether the input at this position is given."""
        return position < len(self.inputs) and self.inputs[position] != ""

    def constant(self, position: int) -> NDArray[Any]:
        """Return the value of an input that must not depend on the image."""
        name = self.inputs[position]
        if name not in self.constants:
            raise self.refusal(f'computes its input "{name}" while it runs')
        return self.constants[name]

    def refusal(self, what: str) -> UnsupportedGraphError:
        """Return the error for something that this room does not run."""
        return UnsupportedGraphError(
            f'node "{self.name}" ({self.op}) {what}, which cannot be run in torch here.',
            "Export the model again, with the exporter's optimization on.",
        )


def runner_of(node: Node) -> Run:
    """Return the function that runs a node; UnsupportedGraphError, naming the node, for another operator."""
    if node.op not in _BUILDERS:
        raise UnsupportedGraphError(
            f'node "{node.name}" is of operator {node.op}, which cannot be run in torch here.',
            f"Known: {', '.join(sorted(_BUILDERS))}.",
        )
    if any(node.outputs[1:]):
        raise node.refusal("has more than one output")
    return _BUILDERS[node.op](node)


def given(inputs: Inputs, position: int) -> Tensor:
    """Return an input that the operator cannot do without."""
    value = inputs[position]
    if value is None:
        raise UnsupportedGraphError(f"an ONNX node lacks its input {position}.")
    return value


def along(vector: Tensor, dimensions: int, axis: int) -> Tensor:
    """Shape one value a channel so that it broadcasts along `axis`; scalars stay as they are."""
    if vector.ndim == 0 or vector.numel() == 1:
        return vector.reshape(())
    shape = [1] * dimensions
    shape[axis] = -1
    return vector.reshape(shape)


def integer_limits(node: Node) -> tuple[int, int]:
    """Return the smallest and largest whole number of a QuantizeLinear's output."""
    kind = node.constant(2).dtype if node.has(2) else np.dtype(np.uint8)
    if kind not in (np.uint8, np.int8) or node.get("output_dtype", 0):
        raise node.refusal(f"writes {kind} or names another type")
    limits = np.iinfo(kind)
    return int(limits.min), int(limits.max)


def _conv(node: Node) -> Run:
    begin, end = _pads(node, 2)
    weight = node.constants.get(node.inputs[1])
    if len(node.get("kernel_shape", [0, 0])) != 2 or (weight is not None and weight.ndim != 4):
        raise node.refusal("is not two-dimensional")
    strides, dilations = node.get("strides", [1, 1]), node.get("dilations", [1, 1])
    groups = int(node.get("group", 1))

    def run(inputs: Inputs) -> Tensor:
        images, padding = given(inputs, 0), begin
        if begin != end:
            images, padding = functional.pad(images, _around(begin, end)), [0, 0]
        bias = inputs[2] if len(inputs) > 2 else None
        return functional.conv2d(
            images, given(inputs, 1), bias, strides, padding, dilations, groups
        )

    return run


def _max_pool(node: Node) -> Run:
    kernel, (begin, end) = list(node.get("kernel_shape", [])), _pads(node, 2)
    strides, dilations = node.get("strides", [1, 1]), node.get("dilations", [1, 1])
    ceil = bool(node.get("ceil_mode", 0))
    # torch pads evenly, and by half a window at most.
    even = begin == end and all(2 * p <= k for p, k in zip(begin, kernel, strict=True))
    if ceil and not even:
        raise node.refusal("rounds its size up over uneven pads")

    def run(inputs: Inputs) -> Tensor:
        images = given(inputs, 0)
        if even:
            return functional.max_pool2d(images, kernel, strides, begin, dilations, ceil)
        images = functional.pad(images, _around(begin, end), value=-math.inf)
        return functional.max_pool2d(images, kernel, strides, 0, dilations)

    return run


def _average_pool(node: Node) -> Run:
    kernel, (begin, end) = list(node.get("kernel_shape", [])), _pads(node, 2)
    strides, ceil = node.get("strides", [1, 1]), bool(node.get("ceil_mode", 0))
    count_pads = bool(node.get("count_include_pad", 0))
    even = begin == end and all(2 * p <= k for p, k in zip(begin, kernel, strict=True))
    if not even or any(d != 1 for d in node.get("dilations", [1, 1])):
        raise node.refusal("has uneven pads or dilations")

    def run(inputs: Inputs) -> Tensor:
        return functional.avg_pool2d(given(inputs, 0), kernel, strides, begin, ceil, count_pads)

    return run


def _pads(node: Node, dimensions: int) -> tuple[list[int], list[int]]:
    """Return the pads at the beginning and at the end of each spatial dimension."""
    automatic = node.get("auto_pad", "NOTSET")
    if automatic not in ("NOTSET", "VALID"):
        raise node.refusal(f"has auto_pad {automatic}")
    pads = list(node.get("pads", [0] * 2 * dimensions))
    if len(pads) != 2 * dimensions:
        raise node.refusal("is not two-dimensional")
    return pads[:dimensions], pads[dimensions:]


def _around(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """Order pads as torch does: last dimension first, begin before end."""
    pairs = zip(reversed(begin), reversed(end), strict=True)
    return [pad for pair in pairs for pad in pair]


def _global_average_pool(node: Node) -> Run:
    return lambda inputs: given(inputs, 0).flatten(2).mean(2)[:, :, None, None]


def _global_max_pool(node: Node) -> Run:
    return lambda inputs: given(inputs, 0).flatten(2).amax(2)[:, :, None, None]


def _leaky_relu(node: Node) -> Run:
    slope = float(node.get("alpha", 0.01))
    return lambda inputs: functional.leaky_relu(given(inputs, 0), slope)


def _squeeze(node: Node) -> Run:
    axes = node.constant(1).tolist() if node.has(1) else list(node.get("axes", []))
    if not axes:
        raise node.refusal("does not name its axes")
    return lambda inputs: given(inputs, 0).squeeze(tuple(axes))


def _reduce(node: Node) -> Run:
    """ReduceMean and ReduceMax."""
    axes = node.constant(1).tolist() if node.has(1) else list(node.get("axes", []))
    keep = bool(node.get("keepdims", 1))
    if not axes and node.get("noop_with_empty_axes", 0):
        return _identity(node)
    if node.op == "ReduceMax":
        return lambda inputs: given(inputs, 0).amax(axes or (), keepdim=keep)
    return lambda inputs: given(inputs, 0).mean(axes or None, keepdim=keep)


def _reshape(node: Node) -> Run:
    wanted = [int(size) for size in node.constant(1)]
    if node.get("allowzero", 0) and 0 in wanted:
        raise node.refusal("makes an empty tensor")

    def run(inputs: Inputs) -> Tensor:
        tensor = given(inputs, 0)
        return tensor.reshape([size or tensor.shape[axis] for axis, size in enumerate(wanted)])

    return run


def _flatten(node: Node) -> Run:
    axis = int(node.get("axis", 1))

    def run(inputs: Inputs) -> Tensor:
        tensor = given(inputs, 0)
        return tensor.reshape(
            math.prod(tensor.shape[: axis if axis >= 0 else axis + tensor.ndim]), -1
        )

    return run


def _gemm(node: Node) -> Run:
    alpha, beta = float(node.get("alpha", 1.0)), float(node.get("beta", 1.0))
    first, second = bool(node.get("transA", 0)), bool(node.get("transB", 0))

    def run(inputs: Inputs) -> Tensor:
        left = given(inputs, 0).T if first else given(inputs, 0)
        right = given(inputs, 1) if second else given(inputs, 1).T
        bias = inputs[2] if len(inputs) > 2 else None
        if alpha == beta == 1.0 and (bias is None or bias.ndim == 1):
            return functional.linear(left, right, bias)
        product = alpha * functional.linear(left, right)
        return product if bias is None else product + beta * bias

    return run


def _clip(node: Node) -> Run:
    low, high = node.get("min", None), node.get("max", None)
    low = float(node.constant(1)) if node.has(1) else low
    high = float(node.constant(2)) if node.has(2) else high
    if low is None and high is None:
        return _identity(node)
    return lambda inputs: given(inputs, 0).clamp(low, high)


def _slice(node: Node) -> Run:
    if not node.has(1):
        raise node.refusal("is of an opset before 10")
    starts, ends = node.constant(1).tolist(), node.constant(2).tolist()
    axes = node.constant(3).tolist() if node.has(3) else list(range(len(starts)))
    steps = node.constant(4).tolist() if node.has(4) else [1] * len(starts)
    if min(steps, default=1) < 1:
        raise node.refusal("steps backwards")

    def run(inputs: Inputs) -> Tensor:
        tensor = given(inputs, 0)
        window = [slice(None)] * tensor.ndim
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            window[axis] = slice(start, end, step)
        return tensor[tuple(window)]

    return run


def _pad(node: Node) -> Run:
    if not node.has(1) or node.has(3):
        raise node.refusal("is of an opset before 11 or names its axes")
    pads, mode = node.constant(1).tolist(), node.get("mode", "constant")
    if mode != "constant":
        raise node.refusal(f"has mode {mode}")
    value = float(node.constant(2)) if node.has(2) else 0.0
    around = _around(pads[: len(pads) // 2], pads[len(pads) // 2 :])
    return lambda inputs: functional.pad(given(inputs, 0), around, value=value)


def _concat(node: Node) -> Run:
    axis = int(node.get("axis", 0))
    return lambda inputs: torch.cat([given(inputs, at) for at in range(len(inputs))], axis)


def _cast(node: Node) -> Run:
    kinds = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 11: torch.float64}
    kind = kinds.get(int(node.get("to", 0)))
    if kind is None:
        raise node.refusal(f"casts to type {node.get('to', 0)}")
    return lambda inputs: given(inputs, 0).to(kind)


def _quantize_linear(node: Node) -> Run:
    low, high = integer_limits(node)
    _refuse_blocks(node)
    axis = int(node.get("axis", 1))

    def run(inputs: Inputs) -> Tensor:
        tensor, scale, zero = _grid(inputs, axis)
        return torch.clamp(torch.round(tensor / scale) + zero, low, high)

    return run


def _dequantize_linear(node: Node) -> Run:
    _refuse_blocks(node)
    axis = int(node.get("axis", 1))

    def run(inputs: Inputs) -> Tensor:
        tensor, scale, zero = _grid(inputs, axis)
        return (tensor - zero) * scale

    return run


def _grid(inputs: Inputs, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tensor in float32 with its scale and zero-point shaped to broadcast."""
    tensor, scale = given(inputs, 0).to(torch.float32), given(inputs, 1)
    zero = inputs[2] if len(inputs) > 2 else None
    zero = torch.zeros_like(scale) if zero is None else zero.to(torch.float32)
    return tensor, along(scale, tensor.ndim, axis), along(zero, tensor.ndim, axis)


def _refuse_blocks(node: Node) -> None:
    if node.get("block_size", 0):
        raise node.refusal("has one scale a block")


def _identity(node: Node) -> Run:
    return lambda inputs: given(inputs, 0)


_BUILDERS: Mapping[str, Callable[[Node], Run]] = {
    "Add": lambda node: lambda inputs: given(inputs, 0) + given(inputs, 1),
    "AveragePool": _average_pool,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "DequantizeLinear": _dequantize_linear,
    "Dropout": _identity,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
    "Identity": _identity,
    "LeakyRelu": _leaky_relu,
    "MatMul": lambda node: lambda inputs: torch.matmul(given(inputs, 0), given(inputs, 1)),
    "MaxPool": _max_pool,
    "Mul": lambda node: lambda inputs: given(inputs, 0) * given(inputs, 1),
    "Pad": _pad,
    "QuantizeLinear": _quantize_linear,
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "Relu": lambda node: lambda inputs: functional.relu(given(inputs, 0)),
    "Reshape": _reshape,
    "Sigmoid": lambda node: lambda inputs: torch.sigmoid(given(inputs, 0)),
    "Slice": _slice,
    "Squeeze": _squeeze,
}
