"""onnxruntime's CPU provider."""

from __future__ import annotations

from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy_tools.errors import UserError, require
from deploy_tools.runtimes.base import RuntimeConfig, Session, part_of, threads_of
from deploy_tools.runtimes.fixed_batch import fix_batch, open_fixed
from deploy_tools.runtimes.streams import core_groups, open_streams

PRECISION_KEY = "deploy_tools.precision"
"""ONNX metadata: what export ("fp32") and quantize ("int8") made."""
_QUANTIZED = {
    "QuantizeLinear", "DequantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv",
    "DynamicQuantizeLinear",
}  # fmt: skip


class OnnxRuntimeSession:
    """A session of onnxruntime; also the base of its plugin providers."""

    runtime = "onnxruntime"

    def __init__(self, session: Any, provider: str, threads: int, precision: str) -> None:
        self._session = session
        self.provider = provider
        self.threads = threads
        self.precision = precision
        self.input_name: str = session.get_inputs()[0].name
        self.output_names = tuple(output.name for output in session.get_outputs())

    def run(self, inputs: NDArray[Any]) -> tuple[NDArray[np.float32], ...]:
        if self._session is None:
            raise RuntimeError("the session is closed")
        try:
            return tuple(self._session.run(None, {self.input_name: inputs}))
        except Exception as error:  # onnxruntime raises many unrelated classes
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"the model cannot run {inputs.dtype} inputs of shape {inputs.shape}: {reason}",
                "Does its input take this type and size, and any batch?",
            ) from error

    def close(self) -> None:
        self._session = None


def open_session(model: Path | bytes, config: RuntimeConfig) -> Session:
    """Load a model on the CPU provider; one session a stream, or one for all where a stream is
    one thread (it runs on the thread that calls, so calls do not share anything but weights)."""
    if config.precision not in ("", "fp32"):
        raise UserError(
            f"onnxruntime's CPU provider does not run {config.precision}.",
            "Use the openvino runtime for bf16.",
        )
    ort = require("onnxruntime", "", "Running ONNX files")
    threads, each = threads_of(config)
    if config.streams == 1 and not config.pinned:
        return _opened(ort, model, threads, config)
    cores = core_groups(config.streams, each) if config.pinned else ()
    return open_streams(
        lambda: _opened(ort, model, each, config), config.streams, threads, cores, each == 1,
        part_of(config),
    )  # fmt: skip


def _opened(ort: Any, model: Path | bytes, threads: int, config: RuntimeConfig) -> Session:
    def open_for(batch: int) -> Session:
        options = session_options(ort, threads, config.fusions, config.spinning)
        fix_batch(options, model, batch)
        session = load(ort, model, options, ["CPUExecutionProvider"])
        precision = "fp32" if stored_precision(session, model) == "fp32" else "int8+fp32"
        return OnnxRuntimeSession(session, "CPUExecutionProvider", threads, precision)

    return open_fixed(open_for, config.fixed_batch)


def session_options(ort: Any, threads: int, fusions: bool, spinning: bool = True) -> Any:
    """Return session options with our defaults: quiet, sequential, exactly `threads` threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised too; no need to print them
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not fusions:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def load(ort: Any, model: Path | bytes, options: Any, providers: list[str] | None) -> Any:
    """Create the InferenceSession; a file that cannot be loaded is a UserError naming it."""
    name = "the model" if isinstance(model, bytes) else str(model)
    if isinstance(model, Path) and not model.is_file():
        raise UserError(f"{model} does not exist.")
    source = model if isinstance(model, bytes) else str(model)
    extra = {"providers": providers} if providers else {}
    try:
        return ort.InferenceSession(source, options, **extra)
    except Exception as error:  # onnxruntime raises many unrelated classes
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(f"{name} cannot be loaded by onnxruntime: {reason}") from error


def stored_precision(session: Any, model: Path | bytes) -> str:
    """Return "int8" for a quantized file and "fp32" for one that is not.

    Files that we quantized say it in their metadata. Others are searched for the operators' names
    before they are parsed, which costs memory: other tools keep our metadata in what they make of
    our files.
    """
    if session.get_modelmeta().custom_metadata_map.get(PRECISION_KEY) == "int8":
        return "int8"
    if not names_quantized(model):
        return "fp32"
    import onnx

    proto = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(str(model))
    return "int8" if any(node.op_type in _QUANTIZED for node in proto.graph.node) else "fp32"


def names_quantized(model: Path | bytes) -> bool:
    """Whether the name of an operator that quantizes is anywhere in the file, as it is stored."""
    names = [name.encode() for name in _QUANTIZED]
    if isinstance(model, bytes):
        return any(name in model for name in names)
    with model.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as stored:
        return any(stored.find(name) >= 0 for name in names)
