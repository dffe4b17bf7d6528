"""Dynamic INT8: 8-bit weights, activations quantized while the model runs.

By default only Gemm and MatMul, since onnxruntime runs dynamically quantized convolutions
(ConvInteger) slower than float ones; a ResNet keeps almost all its weights in convolutions,
so the summary says what was and what was not quantized.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from deploy_tools.artifacts import atomic_path
from deploy_tools.errors import UserError, require
from deploy_tools.onnx_files import (
    load_onnx,
    require_dynamic_batch,
    require_float_input,
    require_nodes,
)
from deploy_tools.quantization.summary import QuantizationSummary, describe_quantization
from deploy_tools.runtimes.onnxruntime import PRECISION_KEY


@dataclass(frozen=True)
class DynamicConfig:
    """include_conv: quantize convolutions too (ConvInteger). exclude: nodes that stay in float."""

    include_conv: bool = False
    exclude: tuple[str, ...] = ()


def dynamic_from_onnx(
    model: Path, path: Path, config: DynamicConfig | None = None
) -> QuantizationSummary:
    """Write the dynamically quantized file of `model` to `path`.

    Raises UserError where the model is quantized already, has a fixed batch, holds nothing to
    quantize, or where a node to exclude does not exist.
    """
    config = config or DynamicConfig()
    proto = load_onnx(model)
    require_dynamic_batch(proto, model)
    require_float_input(proto, model)
    before = describe_quantization(proto)
    if before.quantized_layers:
        raise UserError(f"{model} is quantized already.", "Give the FP32 file that export wrote.")
    require_nodes(proto, config.exclude)
    # The writer transposes Gemm weights and leaves the recorded shapes as they were, which
    # shape inference then rejects; without the records it infers them afresh.
    del proto.graph.value_info[:]
    quantized = _write(proto, config)
    del quantized.metadata_props[:]
    metadata = {prop.key: prop.value for prop in proto.metadata_props} | {PRECISION_KEY: "int8"}
    onnx.helper.set_model_props(quantized, dict(sorted(metadata.items())))
    onnx.checker.check_model(quantized)
    summary = describe_quantization(quantized)
    if not summary.quantized_layers:
        raise UserError(
            f"{model} has no Gemm or MatMul to quantize.", "Use --include-conv, or static INT8."
        )
    with atomic_path(path) as part:
        onnx.save(quantized, str(part))
    return summary


def _write(proto: onnx.ModelProto, config: DynamicConfig) -> onnx.ModelProto:
    quantization = require("onnxruntime.quantization", "", "Quantizing")
    # The writer splits a Gemm into a MatMul of this name and an Add before it looks at names.
    excluded = [name + suffix for name in config.exclude for suffix in ("", "_MatMul")]
    ops = ["Gemm", "MatMul"] + (["Conv"] if config.include_conv else [])
    with tempfile.TemporaryDirectory() as folder, _quiet():
        out = Path(folder) / "dynamic.onnx"
        quantization.quantize_dynamic(
            proto,
            str(out),
            op_types_to_quantize=ops,
            weight_type=quantization.QuantType.QUInt8
            if config.include_conv
            else quantization.QuantType.QInt8,
            nodes_to_exclude=excluded,
            extra_options={"MatMulConstBOnly": True},
        )
        return onnx.load(str(out))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep onnxruntime's advice to pre-process off the terminal: export has done it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
