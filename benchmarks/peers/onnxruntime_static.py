"""onnxruntime's own quantize_static: its calibrators, its defaults, on the same images.

U8S8, or S8S8 with affine or symmetric activations, and one weight scale a channel or a tensor; its
pre-processing runs first, as its documentation asks.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.base import Job
from deploy_tools.errors import require

METHODS = ("MinMax", "Percentile", "Entropy", "Distribution")
"""Its calibrators. Distribution is meant for float8 and runs for INT8 too."""


def load() -> None:
    """Import the tool."""
    require("onnxruntime.quantization", "", "onnxruntime's quantize_static")


def quantize(
    job: Job, path: Path, method: str = "MinMax", activations: str = "u8", per_channel: bool = True
) -> None:
    """Write onnxruntime's static INT8 file of `job.model` to `path`.

    method: one of METHODS. Images go in one a call, as in its examples.
    activations: "u8", "s8" (affine, its own default), or "s8-symmetric", the grid that TensorRT
        takes.
    per_channel: one weight scale an output channel; False is one a tensor.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = iter(job.images())

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            inputs = next(self._batches, None)
            return None if inputs is None else {job.spec.input_name: inputs}

    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            ready = Path(folder) / "pre.onnx"
            quant_pre_process(str(job.model), str(ready), skip_symbolic_shape=True)
            options: dict[str, Any] = {
                "quant_format": QuantFormat.QDQ,
                "per_channel": per_channel,
                "activation_type": QuantType.QUInt8 if activations == "u8" else QuantType.QInt8,
                "weight_type": QuantType.QInt8,
                "calibrate_method": getattr(CalibrationMethod, method),
                "extra_options": {"ActivationSymmetric": activations == "s8-symmetric"},
            }
            quantize_static(str(ready), str(path), Reader(), **options)
    finally:
        logging.disable(logging.NOTSET)
