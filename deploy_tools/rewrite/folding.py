"""Fold the normalization of pixels into the first convolution, exact at the borders too.

With x = a (p - m) (p a pixel, m = 255 mean, a = 1 / (255 std), per channel) the convolution
pads x with 0, which is the pixel m: no whole number and another one for each channel, while
ONNX pads every channel with the same value.

Float files: the scale a goes into the weights, and m is subtracted from the pixels before the
convolution, so that its own padding with 0 is right.

Q/DQ files: the pixels themselves are the convolution's quantized input, with scale 1 and a
zero-point z near the means, with which the convolution pads; the rounding of the normalized
input is gone. For d = m - z the image gets one more channel that holds z + g inside the image:
its weight -sum_c(w_c d_c) / g takes d away inside, and outside, where that channel is padded
with z like the others, it adds 0 as it should.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import UnsupportedGraphError

_Float = NDArray[np.float64]
_WAY_OUT = 'Use the form "first", which changes no layer.'


def fold_into_first_conv(
    graph: onnx.GraphProto, name: str, spec: InputSpec, prefix: str
) -> list[onnx.NodeProto]:
    """Change the first convolution in place; returns the nodes to put in front of the graph.

    name: the graph's input. prefix: of the tensors and nodes that are added.
    Raises UnsupportedGraphError where the input goes elsewhere than into one convolution of one
    group, or where its grid does not allow it.
    """
    reader = _only_reader(graph, name)
    if reader.op_type == "QuantizeLinear":
        return _fold_quantized(graph, name, spec, prefix, reader)
    return _fold_float(graph, name, spec, prefix, _checked(reader))


def _fold_float(
    graph: onnx.GraphProto, name: str, spec: InputSpec, prefix: str, conv: onnx.NodeProto
) -> list[onnx.NodeProto]:
    weight = _initializer(graph, conv.input[1], conv)
    scaled = numpy_helper.to_array(weight).astype(np.float64) * _slope(spec)
    weight = _own_initializer(graph, conv, 1, f"{prefix}.weight")
    weight.CopyFrom(numpy_helper.from_array(scaled.astype(np.float32), weight.name))
    mean = 255 * np.array(spec.mean, np.float64).reshape(1, -1, 1, 1)
    _add_initializer(graph, f"{prefix}.mean", mean.astype(np.float32))
    conv.input[0] = f"{prefix}/centred"
    return [
        _node("Cast", [name], f"{prefix}/cast", to=TensorProto.FLOAT),
        _node("Transpose", [f"{prefix}/cast"], f"{prefix}/transpose", perm=(0, 3, 1, 2)),
        _node("Sub", [f"{prefix}/transpose", f"{prefix}.mean"], conv.input[0]),
    ]


@dataclass(frozen=True)
class _FirstLayer:
    """The quantized first layer as the writer wrote it.

    dequantize: of the pixels. weights: int8 (O, C, H, W) with scale (O,) or (); bias: what the
    integers of the bias mean, in float (O,), 0 where there is none.
    """

    quantize: onnx.NodeProto
    dequantize: onnx.NodeProto
    conv: onnx.NodeProto
    weights: NDArray[np.int8]
    scale: _Float
    bias: _Float


@dataclass(frozen=True)
class _Grid:
    """zero_point: of the pixels. inside: value of the added channel. shift: d of each channel."""

    zero_point: int
    inside: int
    shift: _Float


def _fold_quantized(
    graph: onnx.GraphProto, name: str, spec: InputSpec, prefix: str, quantize: onnx.NodeProto
) -> list[onnx.NodeProto]:
    layer = _first_layer(graph, quantize)
    grid = _pixel_grid(spec)
    slope = _slope(spec)
    # The largest slope leaves the integers within the range that they had (7 bits too).
    scale = np.asarray(layer.scale * slope.max())
    integers = _rounded(layer.weights * (slope / slope.max()))
    inside = -(integers * grid.shift.reshape(1, -1, 1, 1)).sum(1, keepdims=True)
    inside /= grid.inside - grid.zero_point
    rounded = _rounded(inside)
    # What rounding the added channel does inside the image is the same everywhere: a bias.
    left = (rounded - inside).sum(axis=(1, 2, 3)) * (grid.inside - grid.zero_point)
    bias = np.rint(layer.bias / scale - left)
    _replace_weights(graph, layer, np.concatenate([integers, rounded], 1), scale, prefix)
    _replace_bias(graph, layer, bias, scale, prefix)
    _replace_input(graph, layer, grid, prefix)
    graph.node.remove(layer.quantize)
    before = f"{prefix}/inside"
    return [
        _node("Pad", [name, f"{prefix}.one_channel", f"{prefix}.inside"], before),
        _node("Transpose", [before], layer.dequantize.input[0], perm=(0, 3, 1, 2)),
    ]


def _first_layer(graph: onnx.GraphProto, quantize: onnx.NodeProto) -> _FirstLayer:
    zero = _initializer(graph, quantize.input[2] if len(quantize.input) > 2 else "", quantize)
    if zero.data_type != TensorProto.UINT8:
        raise UnsupportedGraphError(
            f'the input is quantized to another type than uint8 by "{quantize.name}".', _WAY_OUT
        )
    dequantize = _only_reader(graph, quantize.output[0])
    conv = _checked(_only_reader(graph, dequantize.output[0]))
    of_weight = _producer(graph, conv.input[1], conv)
    weights = numpy_helper.to_array(_initializer(graph, of_weight.input[0], conv))
    scale = numpy_helper.to_array(_initializer(graph, of_weight.input[1], conv))
    if weights.dtype != np.int8 or _zero_point_of(graph, of_weight).any():
        raise UnsupportedGraphError(
            f'the weights of "{conv.name}" are not INT8 around 0.', _WAY_OUT
        )
    bias = np.zeros(len(weights))
    if len(conv.input) > 2 and conv.input[2]:
        of_bias = _producer(graph, conv.input[2], conv)
        stored, its_scale = (
            numpy_helper.to_array(_initializer(graph, tensor, conv)).astype(np.float64)
            for tensor in of_bias.input[:2]
        )
        bias = stored * its_scale
    return _FirstLayer(quantize, dequantize, conv, weights, scale.astype(np.float64), bias)


def _pixel_grid(spec: InputSpec) -> _Grid:
    """Choose the zero-point amid the means, and what the added channel holds.

    |g| is at least sum(|d|), so that the added weights are no larger than the others.
    """
    means = 255 * np.array(spec.mean, np.float64)
    zero = int(np.clip(np.rint(np.median(means)), 0, 255))
    shift = means - zero
    step = max(1, int(np.ceil(np.abs(shift).sum())))
    inside = zero + step if zero + step <= 255 else zero - step
    if inside < 0:
        raise UnsupportedGraphError(
            f"the means {list(spec.mean)} of the channels lie too far apart for one zero-point.",
            _WAY_OUT,
        )
    return _Grid(zero, inside, shift)


def _rounded(values: _Float) -> _Float:
    """Round (O, C, H, W) to integers, each rounding's error handed on to the next weight.

    Neighbouring pixels are much alike, so what counts is the error of sums of weights.
    """
    outputs, channels, height, width = values.shape
    flat = values.transpose(0, 2, 3, 1).reshape(outputs, -1)
    rounded, carry = np.empty_like(flat), np.zeros(outputs)
    for place in range(flat.shape[1]):
        wanted = flat[:, place] + carry
        rounded[:, place] = np.rint(wanted)
        carry = wanted - rounded[:, place]
    limit = np.abs(np.rint(flat)).max(axis=1, keepdims=True)
    kept = rounded.clip(-limit, limit)
    return kept.reshape(outputs, height, width, channels).transpose(0, 3, 1, 2)


def _replace_weights(
    graph: onnx.GraphProto, layer: _FirstLayer, integers: _Float, scale: _Float, prefix: str
) -> None:
    stored = _add_initializer(graph, f"{prefix}.weight_quantized", integers.astype(np.int8))
    scales = _add_initializer(graph, f"{prefix}.weight_scale", scale.astype(np.float32))
    zeros = _add_initializer(graph, f"{prefix}.weight_zero_point", np.zeros(scale.shape, np.int8))
    old = _producer(graph, layer.conv.input[1], layer.conv)
    made = _node("DequantizeLinear", [stored, scales, zeros], f"{prefix}/weight", axis=0)
    _swap(graph, layer.conv, 1, old, made)


def _replace_bias(
    graph: onnx.GraphProto, layer: _FirstLayer, bias: _Float, scale: _Float, prefix: str
) -> None:
    each = np.broadcast_to(scale, bias.shape)
    stored = _add_initializer(graph, f"{prefix}.bias_quantized", bias.astype(np.int32))
    scales = _add_initializer(graph, f"{prefix}.bias_scale", each.astype(np.float32))
    zeros = _add_initializer(graph, f"{prefix}.bias_zero_point", np.zeros(bias.shape, np.int32))
    made = _node("DequantizeLinear", [stored, scales, zeros], f"{prefix}/bias", axis=0)
    conv = layer.conv
    if len(conv.input) > 2 and conv.input[2]:
        _swap(graph, conv, 2, _producer(graph, conv.input[2], conv), made)
        return
    graph.node.insert(list(graph.node).index(conv), made)
    conv.input[:] = [*conv.input[:2], made.output[0]]


def _replace_input(graph: onnx.GraphProto, layer: _FirstLayer, grid: _Grid, prefix: str) -> None:
    scale = _add_initializer(graph, f"{prefix}.scale", np.array(1, np.float32))
    zero = _add_initializer(graph, f"{prefix}.zero_point", np.array(grid.zero_point, np.uint8))
    _add_initializer(graph, f"{prefix}.inside", np.array(grid.inside, np.uint8))
    _add_initializer(graph, f"{prefix}.one_channel", np.array([0] * 7 + [1], np.int64))
    layer.dequantize.input[:] = [f"{prefix}/transpose", scale, zero]


def _swap(
    graph: onnx.GraphProto,
    conv: onnx.NodeProto,
    place: int,
    old: onnx.NodeProto,
    new: onnx.NodeProto,
) -> None:
    """Let the convolution read `new`; remove `old` and its constants where nobody else does."""
    graph.node.insert(list(graph.node).index(old), new)
    conv.input[place] = new.output[0]
    if not any(old.output[0] in node.input for node in graph.node):
        graph.node.remove(old)
    read = {tensor for node in graph.node for tensor in node.input}
    for tensor in [t for t in graph.initializer if t.name in old.input and t.name not in read]:
        graph.initializer.remove(tensor)


def _checked(node: onnx.NodeProto) -> onnx.NodeProto:
    group = next((a.i for a in node.attribute if a.name == "group"), 1)
    if node.op_type != "Conv" or group != 1:
        what = f"{node.op_type}, not a convolution" if node.op_type != "Conv" else "grouped"
        raise UnsupportedGraphError(f'the first layer "{node.name}" is {what}.', _WAY_OUT)
    return node


def _slope(spec: InputSpec) -> _Float:
    return 1 / (255 * np.array(spec.std, np.float64).reshape(1, -1, 1, 1))


def _only_reader(graph: onnx.GraphProto, tensor: str) -> onnx.NodeProto:
    readers = [node for node in graph.node if tensor in node.input]
    if len(readers) != 1:
        raise UnsupportedGraphError(f'{len(readers)} nodes read "{tensor}", not one.', _WAY_OUT)
    return readers[0]


def _producer(graph: onnx.GraphProto, tensor: str, reader: onnx.NodeProto) -> onnx.NodeProto:
    for node in graph.node:
        if tensor in node.output and node.op_type == "DequantizeLinear":
            return node
    raise UnsupportedGraphError(f'"{tensor}" of "{reader.name}" is not quantized.', _WAY_OUT)


def _zero_point_of(graph: onnx.GraphProto, node: onnx.NodeProto) -> NDArray[np.generic]:
    if len(node.input) < 3 or not node.input[2]:
        return np.zeros(1, np.int8)
    values: NDArray[np.generic] = numpy_helper.to_array(_initializer(graph, node.input[2], node))
    return values


def _initializer(graph: onnx.GraphProto, name: str, reader: onnx.NodeProto) -> onnx.TensorProto:
    for tensor in graph.initializer:
        if tensor.name == name:
            return tensor
    raise UnsupportedGraphError(f'"{name}" of "{reader.name}" is no stored constant.', _WAY_OUT)


def _own_initializer(
    graph: onnx.GraphProto, node: onnx.NodeProto, place: int, name: str
) -> onnx.TensorProto:
    """Return a constant of the node that no other reads: a copy where it is shared."""
    tensor = _initializer(graph, node.input[place], node)
    if sum(list(other.input).count(tensor.name) for other in graph.node) == 1:
        return tensor
    own = graph.initializer.add()
    own.CopyFrom(tensor)
    own.name = node.input[place] = name
    return own


def _add_initializer(graph: onnx.GraphProto, name: str, values: NDArray[np.generic]) -> str:
    graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def _node(kind: str, inputs: list[str], name: str, **attributes: object) -> onnx.NodeProto:
    """Make a node whose one output has its name."""
    return helper.make_node(kind, inputs, [name], name, **attributes)
