"""A model in OpenVINO's own API, as its documentation has it: a performance hint, static shapes
where they are asked for, and an AsyncInferQueue where several requests run at a time.
"""

from __future__ import annotations

from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.base import EXTRA
from benchmarks.peers.setting import Setting
from deploy_tools.errors import UserError, nearest, require

HINTS = ("LATENCY", "THROUGHPUT")
_WHAT = "OpenVINO's own API"


class NativeOpenVino:
    """A compiled model that gets `setting.chunk` images a request; a `Session`.

    path: .xml or .onnx with one input (N, C, H, W). hint: one of HINTS; LATENCY has one stream.
    quantized: whether the file is INT8; the rest runs in bf16 where the CPU has it, which is
    OpenVINO's default. Raises UserError for another hint, and for streams with LATENCY.
    """

    runtime, provider = "openvino", "CPU"

    def __init__(self, path: Path, hint: str, setting: Setting, quantized: bool) -> None:
        if hint not in HINTS:
            raise UserError(f'OpenVINO has no mode "{hint}".', nearest(hint, HINTS))
        if hint == "LATENCY" and setting.streams > 1:
            raise UserError(f"LATENCY has one stream, got {setting.streams}.")
        openvino = require("openvino", EXTRA, _WHAT)
        core = openvino.Core()
        model = core.read_model(str(path))
        if setting.fixed:
            rest = list(model.input(0).get_partial_shape())[1:]
            model.reshape([setting.chunk, *(size.get_length() for size in rest)])
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": hint,
            "INFERENCE_NUM_THREADS": setting.threads * setting.streams,
        }
        if hint == "THROUGHPUT":
            options["NUM_STREAMS"] = setting.streams
        self._compiled: Any = core.compile_model(model, "CPU", options)
        self.threads, self.streams, self.chunk = setting.threads, setting.streams, setting.chunk
        self.precision = _precision(self._compiled, quantized)
        self.input_name = str(model.input(0).any_name)
        self.output_names = tuple(output.any_name for output in model.outputs)
        self._free: SimpleQueue[Any] = SimpleQueue()
        for _ in range(self.streams):
            self._free.put(self._compiled.create_infer_request())
        self._queue = openvino.AsyncInferQueue(self._compiled, self.streams)
        self._queue.set_callback(self._keep)
        self._lock = Lock()
        self._logits = np.empty((0, 0), np.float32)

    def run(self, inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Return the first output, (N, classes); N must be a multiple of the chunk."""
        if self._compiled is None:
            raise RuntimeError("the session is closed")
        if len(inputs) % self.chunk:
            raise UserError(f"{len(inputs)} images are not a multiple of {self.chunk}.")
        if self.streams == 1 or len(inputs) == self.chunk:
            starts = range(0, len(inputs), self.chunk)
            return (np.concatenate([self._one(inputs[at : at + self.chunk]) for at in starts]),)
        return (self._many(inputs),)

    def close(self) -> None:
        """Give back the model and its requests."""
        self._compiled = self._queue = None
        self._free = SimpleQueue()

    def _one(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        request = self._free.get()
        try:
            request.infer(inputs, share_inputs=True)
            return np.array(request.get_output_tensor(0).data, np.float32)
        finally:
            self._free.put(request)

    def _many(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        classes = int(self._compiled.output(0).get_partial_shape()[1].get_length())
        with self._lock:  # the queue is one for all who call
            self._logits = np.empty((len(inputs), classes), np.float32)
            for start in range(0, len(inputs), self.chunk):
                part = inputs[start : start + self.chunk]
                self._queue.start_async(part, start, share_inputs=True)
            self._queue.wait_all()
            return self._logits

    def _keep(self, request: Any, start: int) -> None:
        self._logits[start : start + self.chunk] = request.get_output_tensor(0).data


def _precision(compiled: Any, quantized: bool) -> str:
    kind = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
    rest = {"f32": "fp32"}.get(kind, kind)
    return f"int8+{rest}" if quantized else rest
