"""onnxruntime's own quantize_static: its calibrators, its defaults, on the same images.

U8S8, or S8S8 with symmetric activations, and one weight scale a channel; its pre-processing
runs first, as its documentation asks.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy_tools.data.source import ImageSource, batches
from deploy_tools.data.spec import InputSpec

METHODS = ("MinMax", "Percentile", "Entropy")


def quantize(
    model: Path,
    source: ImageSource,
    indices: list[int],
    spec: InputSpec,
    method: str,
    path: Path,
    symmetric: bool = False,
) -> float:
    """Write onnxruntime's static INT8 file of `model`; returns the seconds it took.

    method: one of METHODS. indices: the calibration images, one a call as in its examples.
    symmetric: S8S8 with ActivationSymmetric, the grid that TensorRT takes, instead of U8S8.
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
            self._batches = self._images()

        def _images(self) -> Iterator[dict[str, NDArray[np.float32]]]:
            for inputs, _ in batches(source, spec, 1, indices):
                yield {spec.input_name: inputs}

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self._batches, None)

    started = time.monotonic()
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            ready = Path(folder) / "pre.onnx"
            quant_pre_process(str(model), str(ready), skip_symbolic_shape=True)
            options: dict[str, Any] = {
                "quant_format": QuantFormat.QDQ,
                "per_channel": True,
                "activation_type": QuantType.QInt8 if symmetric else QuantType.QUInt8,
                "weight_type": QuantType.QInt8,
                "calibrate_method": getattr(CalibrationMethod, method),
                "extra_options": {"ActivationSymmetric": symmetric},
            }
            quantize_static(str(ready), str(path), Reader(), **options)
    finally:
        logging.disable(logging.NOTSET)
    return time.monotonic() - started
