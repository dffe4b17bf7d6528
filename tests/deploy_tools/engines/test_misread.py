"""What it costs when TensorRT takes UINT8 for INT8, computed by onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import tensorrt_samples as samples
from numpy.typing import NDArray

from deploy_tools.runtimes import open_session


def sqnr_db(model: onnx.ModelProto, images: NDArray[np.float32]) -> float:
    """Signal to quantization noise of the logits against the float model, in dB."""
    expected = open_session(samples.tiny().SerializeToString()).run(images)[0]
    found = open_session(model.SerializeToString()).run(images)[0]
    return float(10 * np.log10(np.square(expected).sum() / np.square(expected - found).sum()))


def test_a_uint8_file_that_is_read_as_int8_loses_most_of_its_accuracy() -> None:
    """`good()` is exactly what TensorRT reads in the file of NNCF: the same scales, INT8."""
    images = np.random.default_rng(1).normal(size=(64, *samples.SHAPE)).astype(np.float32)
    meant = sqnr_db(onnx.load(str(samples.NNCF)), images)
    misread = sqnr_db(samples.good(), images)
    assert meant > 25
    assert misread < meant - 10
    # The figures of docs/tensorrt.md.
    assert (meant, misread) == pytest.approx((36.2, 9.7), abs=0.5)
