"""How much arithmetic a model asks for, counted from its ONNX graph."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import onnx
from onnx import numpy_helper, shape_inference

from deploy_tools.errors import UserError
from deploy_tools.onnx_files import real_inputs


@dataclass(frozen=True)
class Work:
    """Of one image. multiply_adds: of convolutions and Gemms. weights: of those, in elements.

    input_values: of the image. At one byte each, weights and input are the least that a call has
    to read from memory, the weights once for all images of the call.
    """

    multiply_adds: int
    weights: int
    input_values: int

    def bytes_an_image(self, batch: int) -> float:
        """Return the bytes that an INT8 call of `batch` images reads at least, an image."""
        return self.weights / batch + self.input_values


def work_of(proto: onnx.ModelProto) -> Work:
    """Count a float model's work for one image.

    Conv: each output value takes (channels of its group) x (kernel) multiply-adds; Gemm and
    MatMul with a weight matrix: its elements. Raises UserError where a layer's shape is not known
    or the model has no such layer.
    """
    single = onnx.ModelProto()
    single.CopyFrom(proto)
    image = real_inputs(single)[0]
    image.type.tensor_type.shape.dim[0].dim_value = 1
    del single.graph.value_info[:]  # of any batch
    for output in single.graph.output:
        output.type.tensor_type.ClearField("shape")
    shapes = _shapes(shape_inference.infer_shapes(single, data_prop=True))
    weights = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    weights |= _constants(proto)
    total = count = 0
    for node in proto.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in weights:
            continue
        dims = weights[node.input[1]]
        total += _multiply_adds(node, dims, shapes)
        count += prod(dims)
    if not total:
        raise UserError("the model has no convolution and no Gemm with weights.")
    return Work(total, count, prod(shapes[image.name]))


def _multiply_adds(node: onnx.NodeProto, weights: list[int], shapes: dict[str, list[int]]) -> int:
    if node.op_type != "Conv":
        return prod(weights)
    if node.output[0] not in shapes:
        raise UserError(f"the shape of {node.name or node.output[0]}'s output is not known.")
    return prod(shapes[node.output[0]]) * prod(weights[1:])


def _shapes(proto: onnx.ModelProto) -> dict[str, list[int]]:
    """Return the shapes that are known in full."""
    graph = proto.graph
    found = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            found[value.name] = [dim.dim_value for dim in dims]
    return found


def _constants(proto: onnx.ModelProto) -> dict[str, list[int]]:
    return {
        node.output[0]: list(numpy_helper.to_array(attribute.t).shape)
        for node in proto.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
