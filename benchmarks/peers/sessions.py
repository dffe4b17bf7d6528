"""Open what a tool made, in a runtime, behind the interface that every judge knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.base import EXTRA
from deploy_tools.errors import UserError, require
from deploy_tools.runtimes import RuntimeConfig, Session, open_session
from deploy_tools.runtimes.base import usable_cores

SIMULATED = "onnxruntime, no fusions"
RUNTIMES = ("onnxruntime", SIMULATED, "openvino", "torch", "torch, simulated")
_FORMATS = {
    ".onnx": ("onnxruntime", SIMULATED, "openvino"),
    ".xml": ("openvino",),
    ".pt": ("torch",),
    ".pt2": ("torch, simulated",),
}
# A program of quantize and dequantize operators makes many float copies: small batches stay in
# the caches.
_PROGRAM_BATCH = 16


def open_peer(path: Path, runtime: str) -> Session:
    """Load a quantized model in one of RUNTIMES.

    .onnx files run in onnxruntime, with its fusions or without, and in OpenVINO; .xml in
    OpenVINO's own API; .pt (TorchScript) and .pt2 (exported programs) in torch.
    Raises UserError where the file's format does not run there.
    """
    if runtime not in _FORMATS.get(path.suffix, ()):
        raise UserError(f'{path.name} does not run in "{runtime}".')
    if path.suffix == ".onnx":
        name = "openvino" if runtime == "openvino" else "onnxruntime"
        return open_session(path, RuntimeConfig(name, fusions=runtime != SIMULATED))
    if path.suffix == ".xml":
        return _open_openvino(path)
    return _open_torch(path)


class FunctionSession:
    """A session that calls a function of inputs (N, C, H, W), float32, for logits (N, classes)."""

    threads = usable_cores()
    input_name = "input"
    output_names: tuple[str, ...] = ("logits",)
    provider = "cpu"

    def __init__(
        self,
        runtime: str,
        precision: str,
        function: Callable[[NDArray[np.float32]], NDArray[np.float32]],
        batch: int = 0,
    ) -> None:
        """batch: images that go to the function at a time; 0 hands on what comes."""
        self.runtime, self.precision = runtime, precision
        self._function: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = function
        self._batch = batch

    def run(self, inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        if self._function is None:
            raise RuntimeError("the session is closed")
        size = self._batch or len(inputs)
        parts = [
            self._function(inputs[start : start + size]) for start in range(0, len(inputs), size)
        ]
        return (np.concatenate(parts),)

    def close(self) -> None:
        self._function = None


def _open_openvino(path: Path) -> Session:
    """OpenVINO at its defaults: what is not INT8 runs in bf16 where the CPU has it."""
    openvino = require("openvino", EXTRA, "OpenVINO's own API")
    compiled = openvino.Core().compile_model(str(path), "CPU")
    kind = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
    rest = {"f32": "fp32"}.get(kind, kind)

    def run(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.array(compiled(inputs)[0], np.float32)

    return FunctionSession("openvino", f"int8+{rest}", run)


def _open_torch(path: Path) -> Session:
    torch = require("torch", "torch", "A torch model")
    if path.suffix == ".pt":
        return FunctionSession("torch", "int8+fp32", _runner(torch, torch.jit.load(str(path))))
    # The operators of the program are registered by whoever made it.
    require("torchao.quantization.pt2e.quantize_pt2e", EXTRA, "A quantized program")
    program = torch.export.load(str(path)).module()
    return FunctionSession("torch", "fp32, simulated", _runner(torch, program), _PROGRAM_BATCH)


def _runner(torch: Any, module: Any) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    def run(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        if torch.get_num_threads() != usable_cores():
            torch.set_num_threads(usable_cores())
        with torch.inference_mode():
            logits: NDArray[np.float32] = module(torch.from_numpy(inputs)).numpy()
        return logits

    return run
