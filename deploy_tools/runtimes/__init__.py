"""Runtimes by name. A new one is one file and one line in `RUNTIMES`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from deploy_tools.errors import UserError, nearest
from deploy_tools.runtimes.base import RuntimeConfig, Session

RUNTIMES = {
    "onnxruntime": "deploy_tools.runtimes.onnxruntime",
    "openvino": "deploy_tools.runtimes.openvino",
    "tensorrt": "deploy_tools.runtimes.tensorrt",
    "tensorrt-rtx": "deploy_tools.runtimes.tensorrt",
}
ENGINE_RUNTIMES = ("tensorrt", "tensorrt-rtx")
"""Those that run a TensorRT engine on a GPU; the others run ONNX files."""

__all__ = ["ENGINE_RUNTIMES", "RUNTIMES", "RuntimeConfig", "Session", "open_session"]


def open_session(model: Path | bytes, config: RuntimeConfig | None = None) -> Session:
    """Load an ONNX file (or its bytes), or a TensorRT engine, in the runtime that `config` names.

    Raises UserError for a file that is not a usable model, MissingDependencyError where the
    runtime or its GPU is missing, and ArtifactError for an engine that does not fit this machine.
    """
    config = config or RuntimeConfig()
    if config.runtime not in RUNTIMES:
        raise UserError(
            f'runtime "{config.runtime}" is not known.', nearest(config.runtime, RUNTIMES)
        )
    if config.threads < 0:
        raise UserError(f"threads must be 0 (every core) or more, got {config.threads}.")
    if config.streams < 1:
        raise UserError(f"streams must be 1 or more, got {config.streams}.")
    for key, number in (("part", config.part), ("fixed_batch", config.fixed_batch)):
        if number < 0:
            raise UserError(f"{key} must be 0 or more, got {number}.")
    if config.part and config.streams == 1:
        raise UserError("part says how streams share a batch, and there is one stream.")
    if config.runtime in ENGINE_RUNTIMES and _is_shaped(config):
        raise UserError(
            f"{config.runtime} runs on a GPU: it has no streams, pinning, spinning or fixed batch "
            "to choose."
        )
    if config.runtime not in ENGINE_RUNTIMES and (config.memory or config.cuda_graph):
        raise UserError(
            f"{config.runtime} has no device memory to choose and no CUDA graphs.",
            f"Those belong to {' and '.join(ENGINE_RUNTIMES)}.",
        )
    module = importlib.import_module(RUNTIMES[config.runtime])
    return cast(Session, module.open_session(model, config))


def _is_shaped(config: RuntimeConfig) -> bool:
    """Whether options are set that are for CPU runtimes only."""
    shape = (config.streams, config.pinned, config.spinning, config.fixed_batch)
    return shape != (1, None, True, 0)
