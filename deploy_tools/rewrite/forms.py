"""Which form of the uint8 input each target gets: the one that its runtime runs faster."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto

from deploy_tools.onnx_files import load_onnx, real_inputs

FORMS = ("first", "folded")

_FASTER = {
    ("ort-cpu", "fp32"): "folded",
    ("ort-cpu", "int8"): "folded",
    ("openvino", "fp32"): "folded",
    ("openvino", "int8"): "folded",
    ("x86-no-vnni", "int8"): "folded",
}
"""By target and what the first layer reads. Others have "first": TensorRT and arm quantize to
INT8, which pixels are not."""


def default_form(target: str, model: Path) -> str:
    """Return the form for a file of `target`: the faster one of those that its grid allows."""
    return _FASTER.get((target, _first_precision(load_onnx(model))), "first")


def _first_precision(proto: onnx.ModelProto) -> str:
    """Return "fp32" or "int8" where the first layer is a convolution of that kind, else ""."""
    name = real_inputs(proto)[0].name
    readers = [node for node in proto.graph.node if name in node.input]
    if len(readers) != 1:
        return ""
    reader = readers[0]
    if reader.op_type == "Conv":
        return "fp32"
    zero = reader.input[2] if reader.op_type == "QuantizeLinear" and len(reader.input) > 2 else ""
    stored = {t.name: t.data_type for t in proto.graph.initializer}
    return "int8" if stored.get(zero) == TensorProto.UINT8 else ""
