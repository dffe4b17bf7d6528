"""Which form of the uint8 input each target gets: the one that its runtime runs faster."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto

from deploy_tools.onnx_files import load_onnx, real_inputs

FORMS = ("first", "folded")

_FOLDED = {("ort-cpu", "int8"), ("x86-no-vnni", "int8")}
"""By target and what the first layer reads; all others have "first".

CPU time of a call at batch 1 on one thread of a Xeon with AMX, "first" over "folded" (above 1:
"folded" is faster), medians of 12 interleaved rounds with 95 % intervals, on a busy machine and
so preliminary; onnxruntime 1.31, OpenVINO's provider 2026.4:

                    ResNet-20 at 32      ResNet-18 at 224
onnxruntime INT8    1.17 [1.04, 1.18]    1.13 [1.08, 1.14]
onnxruntime FP32    1.02 [0.97, 1.09]    1.05 [0.94, 1.18]    not told apart
OpenVINO INT8       0.93 [0.86, 1.02]    0.47 [0.41, 0.66]    why was not traced
OpenVINO FP32       0.93 [0.79, 1.06]    0.98 [0.92, 1.06]    not told apart

x86-no-vnni has the layout and the runtime of ort-cpu; its own CPUs were not measured. TensorRT
and arm quantize to INT8, which pixels are not.
"""


def default_form(target: str, model: Path) -> str:
    """Return the form for a file of `target`: "folded" where that is clearly faster."""
    kind = (target, _first_precision(load_onnx(model)))
    return "folded" if kind in _FOLDED else "first"


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
