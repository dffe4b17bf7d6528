"""A part of a graph, loaded: it takes and gives tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploy_tools.errors import require
from deploy_tools.runtimes.onnxruntime import load, session_options
from deploy_tools.sensitivity.graph import Array


class PartSession:
    """onnxruntime on one thread, in float as written.

    Simulated Q/DQ pairs stay pairs: onnxruntime would otherwise move them around and round where
    the file does not. One thread a run, several runs at a time: results do not depend on how many
    threads or processes there are, and `run` may be called from several threads.
    """

    def __init__(self, model: bytes) -> None:
        ort = require("onnxruntime", "", "Running ONNX files")
        options = session_options(ort, 1, fusions=True)
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self._session: Any = load(ort, model, options, ["CPUExecutionProvider"])
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; `tensors` may hold more than the inputs."""
        feeds = {name: tensors[name] for name in self._inputs}
        return dict(zip(self._outputs, self._session.run(None, feeds), strict=True))
