"""NVIDIA ModelOpt's quantization of ONNX files, calibrated on the CPU.

Its pins (onnx 1.21, onnxruntime 1.24) do not fit beside ours, so it runs in the environment
that `python -m benchmarks.peers.environment modelopt` makes; `measure` is given that Python.
The layout is TensorRT's: S8S8 symmetric, one weight scale a channel.
"""

from __future__ import annotations

import importlib
import shutil
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np

from benchmarks.peers.base import Job
from deploy_tools.errors import MissingDependencyError, UserError

METHODS = ("max", "entropy")


def load() -> None:
    """Import the tool."""
    _tool()


def _tool() -> ModuleType:
    try:
        return importlib.import_module("modelopt.onnx.quantization")
    except ImportError as error:
        raise MissingDependencyError(
            f"NVIDIA ModelOpt cannot be imported ({error}).",
            "Make its environment with: python -m benchmarks.peers.environment modelopt",
        ) from error


def quantize(job: Job, path: Path, method: str = "entropy") -> None:
    """Write ModelOpt's INT8 file of `job.model` to `path`.

    method: one of METHODS; entropy is ModelOpt's default. What is not quantized stays float32.
    """
    if method not in METHODS:
        raise UserError(f'ModelOpt has no calibration "{method}".', f"Known: {', '.join(METHODS)}.")
    images = np.concatenate(list(job.images(64)))
    with tempfile.TemporaryDirectory() as folder:
        # It writes beside the file that it reads.
        model = Path(shutil.copy(job.model, Path(folder) / "model.onnx"))
        _tool().quantize(
            str(model),
            quantize_mode="int8",
            calibration_data={job.spec.input_name: images},
            calibration_method=method,
            calibration_eps=["cpu"],
            output_path=str(path),
            high_precision_dtype="fp32",
            log_level="ERROR",
        )
