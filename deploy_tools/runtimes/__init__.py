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
}

__all__ = ["RUNTIMES", "RuntimeConfig", "Session", "open_session"]


def open_session(model: Path | bytes, config: RuntimeConfig | None = None) -> Session:
    """Load an ONNX file (or its bytes) in the runtime that `config` names.

    Raises UserError for a file that is not a usable model and MissingDependencyError
    where the runtime is not installed.
    """
    config = config or RuntimeConfig()
    if config.runtime not in RUNTIMES:
        raise UserError(
            f'runtime "{config.runtime}" is not known.', nearest(config.runtime, RUNTIMES)
        )
    if config.threads < 0:
        raise UserError(f"threads must be 0 (every core) or more, got {config.threads}.")
    module = importlib.import_module(RUNTIMES[config.runtime])
    return cast(Session, module.open_session(model, config))
