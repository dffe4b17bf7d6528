"""What in a file is quantized and what is not, weight by weight."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx

_INT8 = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "ConvInteger", "MatMulInteger", "QLinearConv")


@dataclass(frozen=True)
class LayerWeights:
    """One layer's weight: its shape, stored type and size in bytes."""

    layer: str
    op: str
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int
    per_channel: bool

    @property
    def quantized(self) -> bool:
        """Whether the weight is stored in 8 bits."""
        return self.dtype in ("int8", "uint8")


@dataclass(frozen=True)
class QuantizationSummary:
    """Every layer with weights, in graph order, and the activations that are quantized."""

    layers: tuple[LayerWeights, ...]
    activations: tuple[str, ...]

    @property
    def quantized_layers(self) -> int:
        """How many layers have 8-bit weights."""
        return sum(layer.quantized for layer in self.layers)

    @property
    def quantized_share(self) -> float:
        """Share of the weights (counted in elements) stored in 8 bits."""
        total = sum(math.prod(layer.shape) for layer in self.layers)
        done = sum(math.prod(layer.shape) for layer in self.layers if layer.quantized)
        return done / total if total else 0.0

    def __str__(self) -> str:
        rows = [
            f"{layer.layer:<32} {layer.op:<14} {'x'.join(map(str, layer.shape)):<16} "
            f"{layer.dtype:<8} {layer.size_bytes:>10,} bytes"
            for layer in self.layers
        ]
        rows.append(
            f"{self.quantized_layers} of {len(self.layers)} layers quantized, "
            f"{self.quantized_share:.1%} of the weights; {len(self.activations)} activations"
        )
        return "\n".join(rows)

    def to_dict(self) -> dict[str, object]:
        """Return what the report and the manifest keep."""
        return {
            "layers": len(self.layers),
            "quantized_layers": self.quantized_layers,
            "quantized_share": round(self.quantized_share, 6),
            "activations": len(self.activations),
            "float_layers": [layer.layer for layer in self.layers if not layer.quantized],
        }


def describe_quantization(proto: onnx.ModelProto) -> QuantizationSummary:
    """Return the summary of a float, Q/DQ or dynamically quantized file."""
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    producers = {output: node for node in proto.graph.node for output in node.output}
    layers = []
    for node in proto.graph.node:
        if node.op_type not in _LAYERS:
            continue
        stored = _stored_weight(node, weights, producers)
        if stored is not None:
            layers.append(_layer(node, stored[0], stored[1], weights))
    activations = tuple(
        node.input[0]
        for node in proto.graph.node
        if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear")
        and node.input[0] not in weights
    )
    return QuantizationSummary(tuple(layers), activations)


def _stored_weight(
    node: onnx.NodeProto,
    weights: dict[str, onnx.TensorProto],
    producers: dict[str, onnx.NodeProto],
) -> tuple[onnx.TensorProto, str] | None:
    """Return the weight as stored and the name of its scale, looking through DequantizeLinear."""
    position = 3 if node.op_type == "QLinearConv" else 1
    name = node.input[position]
    scale = ""
    for _ in range(3):
        if name in weights:
            return weights[name], scale
        producer = producers.get(name)
        if producer is None or producer.op_type not in (
            "DequantizeLinear",
            "QuantizeLinear",
            "Transpose",
        ):
            return None
        if len(producer.input) > 1:
            scale = producer.input[1]
        name = producer.input[0]
    return None


def _layer(
    node: onnx.NodeProto, tensor: onnx.TensorProto, scale: str, weights: dict[str, onnx.TensorProto]
) -> LayerWeights:
    shape = tuple(tensor.dims)
    width = (
        1
        if tensor.data_type in _INT8
        else onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    )
    stored = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    dtype = "float32" if stored == "float" else stored
    per_channel = scale in weights and math.prod(weights[scale].dims) > 1
    name = tensor.name.removesuffix("_quantized").removesuffix(".weight")
    return LayerWeights(name, node.op_type, shape, dtype, math.prod(shape) * width, per_channel)
