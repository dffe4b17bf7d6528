"""torch -> ONNX: dynamic batch, named nodes, metadata with the input spec, checked.

Files are the same on every machine: what the exporter leaves in node metadata (stack traces
with absolute paths) is removed, and nodes are named after the weights they hold.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from deploy_tools.artifacts import atomic_path
from deploy_tools.data.spec import METADATA_KEY, InputSpec
from deploy_tools.errors import OutputError, UserError, require
from deploy_tools.onnx_names import name_after_weights
from deploy_tools.runtimes import open_session
from deploy_tools.runtimes.onnxruntime import PRECISION_KEY

TRACED_BATCH = 2
CHECKED_BATCHES = (1, 3, 5)


@dataclass(frozen=True)
class ExportConfig:
    """opset: ONNX operator set; 20 is the newest that every target of ours reads.

    tolerance: allowed difference of the logits between torch and onnxruntime, relative to the
        largest logit, in float32.
    """

    opset: int = 20
    tolerance: float = 1e-4


@dataclass(frozen=True)
class ExportReport:
    """How far the ONNX file is from the module: largest difference by batch size."""

    path: Path
    nodes: int
    size_bytes: int
    max_abs: Mapping[int, float] = field(default_factory=dict)
    max_rel: Mapping[int, float] = field(default_factory=dict)

    def __str__(self) -> str:
        differences = ", ".join(f"batch {b}: {d:.1e}" for b, d in self.max_abs.items())
        return (
            f"{self.path.name}: {self.nodes} nodes, {self.size_bytes / 1e6:.1f} MB; "
            f"max abs difference to torch {differences}"
        )


def onnx_from_module(
    module: nn.Module,
    spec: InputSpec,
    path: Path,
    config: ExportConfig | None = None,
    metadata: Mapping[str, str] | None = None,
) -> ExportReport:
    """Export `module` (eval mode, on the CPU) to `path` with a dynamic batch.

    The file is checked by onnx.checker and against the module at batch sizes other than the
    traced one before it gets its name. Raises UserError where the module cannot be exported,
    MissingDependencyError where onnxscript, which torch's exporter needs, is not installed, and
    OutputError where `path` cannot be written.
    """
    require("onnxscript", "torch", "export")
    if spec.takes_pixels:
        raise UserError(
            "a torch module takes normalized floats, and the input spec says uint8 pixels.",
            "Export the float file; --input uint8 makes one for pixels from it.",
        )
    _require_folder(path)
    config = config or ExportConfig()
    module = module.eval()
    proto = _exported(module, spec, config)
    _strip_traces(proto)
    name_after_weights(proto)
    proto.producer_name = "deploy-tools"
    proto.producer_version = ""
    notes = {METADATA_KEY: spec.to_json(), PRECISION_KEY: "fp32", **(metadata or {})}
    onnx.helper.set_model_props(proto, dict(sorted(notes.items())))
    _require_dynamic_batch(proto)
    _check(proto)
    max_abs, max_rel = _differences(module, proto, spec)
    # max() would lose a NaN that does not come first.
    if not all(value <= config.tolerance for value in max_rel.values()):
        worst = float(np.max(list(max_rel.values())))
        raise UserError(
            f"the exported file differs from the module by {worst:.1e} of the largest logit "
            f"(allowed: {config.tolerance:.0e}).",
            "Does the module's forward depend on the batch, on random numbers or on its state?",
        )
    with atomic_path(path) as part:
        onnx.save(proto, str(part))
    return ExportReport(path, len(proto.graph.node), path.stat().st_size, max_abs, max_rel)


def _require_folder(path: Path) -> None:
    """Refuse a place below a file now, not after the seconds or minutes of the export."""
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir():
        raise OutputError(
            f"{path} cannot be written: {nearest} is not a folder.",
            "Choose another folder with -o.",
        )


def _exported(module: nn.Module, spec: InputSpec, config: ExportConfig) -> onnx.ModelProto:
    example = torch.randn(spec.shape(TRACED_BATCH), generator=torch.Generator().manual_seed(0))
    batch = torch.export.Dim("batch", min=1)
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=config.opset,
                input_names=[spec.input_name],
                output_names=[spec.output_name],
                dynamic_shapes=({0: batch},),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises many classes of its own and of torch
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the model cannot be exported with a dynamic batch: {reason}",
            "Its forward must be traceable by torch.export for any batch size.",
        ) from error
    if program is None:
        raise UserError("the exporter returned no program.")
    proto: onnx.ModelProto = program.model_proto
    return proto


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep the exporter's progress, warnings and log lines off the user's terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _strip_traces(proto: onnx.ModelProto) -> None:
    """Remove the exporter's notes: they hold absolute paths and differ between machines."""
    graph = proto.graph
    holders = [graph, *graph.node, *graph.value_info, *graph.input, *graph.output]
    for holder in [*holders, *graph.initializer]:
        del holder.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
    graph.doc_string = ""
    proto.doc_string = ""


def _require_dynamic_batch(proto: onnx.ModelProto) -> None:
    if len(proto.graph.output) != 1:
        raise UserError(
            f"the model gives {len(proto.graph.output)} outputs; a classifier gives one, its logits."
        )
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    if not dims[0].dim_param:
        raise UserError(
            f"the exported model takes only batches of {dims[0].dim_value}.",
            "Something in its forward fixes the batch size (a reshape with a number, perhaps).",
        )


def _check(proto: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise UserError(f"the exported model is not valid ONNX: {reason}") from error


def _differences(
    module: nn.Module, proto: onnx.ModelProto, spec: InputSpec
) -> tuple[dict[int, float], dict[int, float]]:
    session = open_session(proto.SerializeToString())
    max_abs, max_rel = {}, {}
    generator = torch.Generator().manual_seed(1)
    for batch in CHECKED_BATCHES:
        inputs = torch.randn(spec.shape(batch), generator=generator)
        with torch.inference_mode():
            outputs = module(inputs)
        if not isinstance(outputs, torch.Tensor):
            raise UserError(f"the model returns {type(outputs).__name__}, not a tensor of logits.")
        expected = outputs.numpy()
        found = session.run(inputs.numpy())[0]
        if found.shape != expected.shape:
            raise UserError(
                f"the exported file gives shape {found.shape} where the module gives {expected.shape}."
            )
        difference = float(np.abs(found - expected).max())
        max_abs[batch] = difference
        max_rel[batch] = difference / max(float(np.abs(expected).max()), 1e-30)
    session.close()
    return max_abs, max_rel
