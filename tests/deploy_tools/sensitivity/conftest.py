"""The shipped ResNet-20, its ranges, and training images that the ranges do not know."""

from __future__ import annotations

from pathlib import Path

import pytest
from sensitivity_samples import Demo

from calibration.collect import statistics_from_images
from calibration.select import SelectConfig, select_images
from deploy_tools.data.source import ImageSource, batches
from deploy_tools.onnx_files import input_spec_of, load_onnx
from deploy_tools.quantization.static import activation_tensors


@pytest.fixture(scope="session")
def demo(demo_onnx: Path, fashion_train: ImageSource) -> Demo:
    proto = load_onnx(demo_onnx)
    spec = input_spec_of(proto, demo_onnx)
    selection = select_images(fashion_train, SelectConfig(40))
    tensors = activation_tensors(proto)
    statistics = statistics_from_images(demo_onnx, tensors, fashion_train, selection, spec)
    spare = [i for i in range(400) if i not in set(selection.indices)][:80]
    return Demo(demo_onnx, statistics, next(batches(fashion_train, spec, 80, spare))[0])
