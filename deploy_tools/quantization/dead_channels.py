"""All-zero weight channels, which have a bias all the same: what pruning and dead BatchNorms leave.

The writer gives such a channel scale 1, so its bias, counted in steps of input scale x weight
scale, is rounded to whole steps of the input. Any scale holds zeros: here it is the largest of
the tensor, and the bias is as fine as every other channel's.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

FALLBACK = 2.0**-10
"""The scale where no channel of the tensor is alive."""
_MOST = 2.0**31 - 1


def scale_dead_channels(quantized: onnx.ModelProto, proto: onnx.ModelProto) -> None:
    """Give the dead channels of a written file, and their biases, a finer scale, in place.

    proto: the float model that the file was written from; nodes keep their names.
    """
    stored = {tensor.name: tensor for tensor in quantized.graph.initializer}
    producers = {tensor: node for node in quantized.graph.node for tensor in node.output}
    floats = {tensor.name: tensor for tensor in proto.graph.initializer}
    origins = {node.name: node for node in proto.graph.node}
    for node in quantized.graph.node:
        pairs = [producers.get(tensor) for tensor in node.input]
        if node.op_type not in ("Conv", "Gemm") or pairs[0] is None or pairs[1] is None:
            continue
        source, weight, bias = pairs[0], pairs[1], pairs[2] if len(pairs) > 2 else None
        if weight.input[0] not in stored or not stored[weight.input[1]].dims:
            continue  # in float, or one scale a tensor
        origin = origins[node.name]
        dead = _dead_channels(weight, floats[origin.input[1]])
        if dead.any():
            step = numpy_helper.to_array(stored[source.input[1]])
            exact = None if bias is None else numpy_helper.to_array(floats[origin.input[2]])
            scale = _refill(stored[weight.input[1]], dead, step, exact)
            if bias is not None and exact is not None:
                _store_bias(bias, stored, exact, scale * step)


def _dead_channels(pair: onnx.NodeProto, weight: onnx.TensorProto) -> NDArray[np.bool_]:
    """Return for each channel whether the writer finds no scale for it; weight: in float."""
    values = numpy_helper.to_array(weight)
    axis = next(attribute.i for attribute in pair.attribute if attribute.name == "axis")
    size = np.abs(values).max(axis=tuple(a for a in range(values.ndim) if a != axis))
    return np.asarray(size / 127 < np.finfo(np.float32).tiny)


def _refill(
    tensor: onnx.TensorProto,
    dead: NDArray[np.bool_],
    step: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    """Store and return the weight's scales, those of dead channels such that the bias fits."""
    scale = numpy_helper.to_array(tensor)
    fill = np.full(dead.size, scale[~dead].max() if not dead.all() else FALLBACK, np.float32)
    if bias is not None:
        fill = np.maximum(fill, np.abs(bias.astype(np.float64)) / (_MOST * 0.5 * step))
    scale = np.where(dead, fill, scale).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(scale, tensor.name))
    return scale


def _store_bias(
    pair: onnx.NodeProto,
    stored: Mapping[str, onnx.TensorProto],
    bias: NDArray[np.float32],
    scale: NDArray[np.float32],
) -> None:
    whole = np.clip(np.rint(bias.astype(np.float64) / scale), -_MOST, _MOST).astype(np.int32)
    for name, values in zip(pair.input[:2], (whole, scale), strict=True):
        stored[name].CopyFrom(numpy_helper.from_array(values, name))
