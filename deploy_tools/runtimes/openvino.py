"""OpenVINO's CPU plugin as a provider of onnxruntime (package onnxruntime-ep-openvino).

The provider ignores `num_streams` and `num_of_threads` with a warning only; settings go in
as `load_config`, a JSON text of OpenVINO properties. Its precision is always set here and
never left to OpenVINO, whose default for an FP32 file is bfloat16 where the CPU has it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deploy_tools.errors import MissingDependencyError, UserError, require
from deploy_tools.runtimes import onnxruntime as ort_runtime
from deploy_tools.runtimes.base import RuntimeConfig, Session, part_of, threads_of
from deploy_tools.runtimes.fixed_batch import fix_batch, open_fixed
from deploy_tools.runtimes.streams import share_session

_LIBRARY_NAME = "deploy_tools_openvino"
_HINTS = {"fp32": "f32", "bf16": "bf16"}
_WHOLE_KERNELS = {"SNIPPETS_MODE": "DISABLE"}
"""Of shapes that are known, the plugin makes subgraphs of element-wise operators ("snippets"), and
takes residual Adds with a float branch out of the convolutions that add them for nothing."""


class OpenVinoSession(ort_runtime.OnnxRuntimeSession):
    """An onnxruntime session whose nodes all run in OpenVINO."""

    runtime = "openvino"


def open_session(model: Path | bytes, config: RuntimeConfig) -> Session:
    """Load a model; every node must run in OpenVINO, none falls back to onnxruntime's CPU.

    Streams are OpenVINO's own, of one session. precision "" means bf16 for a float file where the
    CPU has it, and fp32 otherwise; for a quantized file it says in what the parts that are not
    quantized run.
    """
    if not config.spinning:
        raise UserError("the openvino runtime has no option against spinning.")
    ort = require("onnxruntime", "openvino", "The openvino runtime")
    device = _cpu_device(ort)
    has_bf16 = "BF16" in device.ep_metadata.get("OPTIMIZATION_CAPABILITIES", "")
    precision = _precision(config.precision, has_bf16)
    threads, _ = threads_of(config)
    properties = _properties(precision, threads, config)

    def load(batch: int, extra: dict[str, str]) -> Any:
        options = ort_runtime.session_options(ort, threads, config.fusions)
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        fix_batch(options, model, batch)
        settings = {"load_config": json.dumps({"CPU": properties | extra})}
        options.add_provider_for_devices([device], settings)
        return ort_runtime.load(ort, model, options, None)

    def open_for(batch: int) -> Session:
        if batch and _may_be_quantized(model):
            try:
                session = load(batch, _WHOLE_KERNELS)
            except UserError:  # of a plugin that does not know the property, or of the file
                session = load(batch, {})
        else:
            session = load(batch, {})
        stored = ort_runtime.stored_precision(session, model)
        shown = precision if stored == "fp32" else f"int8+{precision}"
        return OpenVinoSession(session, "OpenVINOExecutionProvider", threads, shown)

    opened = open_fixed(open_for, config.fixed_batch)
    if config.streams == 1:
        return opened
    return share_session(opened, config.streams, part_of(config))


def _may_be_quantized(model: Path | bytes) -> bool:
    """Whether a file names operators that quantize; False where it cannot be read."""
    try:
        return ort_runtime.names_quantized(model)
    except (OSError, ValueError):  # loading it says what is wrong
        return False


def _properties(precision: str, threads: int, config: RuntimeConfig) -> dict[str, str]:
    """Return OpenVINO's properties; the CPU plugin refuses a name or a value it does not know."""
    properties = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "INFERENCE_NUM_THREADS": str(threads),
        "PERFORMANCE_HINT": "LATENCY",
    }
    if config.streams > 1:
        properties |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": str(config.streams)}
    if config.pinned is not None:
        properties["ENABLE_CPU_PINNING"] = "YES" if config.pinned else "NO"
    return properties


def _precision(wanted: str, has_bf16: bool) -> str:
    if wanted == "bf16" and not has_bf16:
        raise MissingDependencyError(
            "this CPU has no bfloat16 arithmetic.", "Leave the bf16 variant out, or use fp32."
        )
    if wanted and wanted not in _HINTS:
        raise UserError(f"the openvino runtime does not run {wanted}.", "Use fp32 or bf16.")
    return wanted or ("bf16" if has_bf16 else "fp32")


def _cpu_device(ort: Any) -> Any:
    package = require("onnxruntime_ep_openvino", "openvino", "The openvino runtime")
    if not hasattr(ort, "register_execution_provider_library"):
        raise MissingDependencyError(
            f"onnxruntime {ort.__version__} cannot load plugin providers.",
            "Install it with: pip install 'deploy-tools[openvino]'",
        )
    name = package.get_ep_name()
    devices = _matching(ort, name)
    if not devices:
        try:
            ort.register_execution_provider_library(_LIBRARY_NAME, package.get_library_path())
        except Exception as error:  # onnxruntime raises many unrelated classes
            raise MissingDependencyError(
                f"the OpenVINO provider cannot be loaded: {error}.",
                "Install it with: pip install 'deploy-tools[openvino]'",
            ) from error
        devices = _matching(ort, name)
    if not devices:
        raise MissingDependencyError("the OpenVINO provider offers no CPU device here.")
    return devices[0]


def _matching(ort: Any, name: str) -> list[Any]:
    return [
        device
        for device in ort.get_ep_devices()
        if device.ep_name == name and device.ep_metadata.get("ov_device") == "CPU"
    ]
