"""Graphs to quantize, and ranges for them that know nothing of `calibration`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from deploy_tools.data.source import batches
from deploy_tools.onnx_files import input_spec_of, load_onnx
from deploy_tools.quantization.static import activation_tensors
from deploy_tools.runtimes import open_session


class SeenRanges:
    """The smallest and largest value of every activation over some inputs."""

    def __init__(self, model: Path, inputs: NDArray[np.float32]) -> None:
        proto = onnx.load(str(model))
        name = proto.graph.input[0].name
        known = {value.name for value in proto.graph.output}
        wanted = [t for t in activation_tensors(proto) if t != name and t not in known]
        proto.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in wanted)
        session = open_session(proto.SerializeToString())
        values = dict(zip(session.output_names, session.run(inputs), strict=True))
        values[name] = inputs
        self.ranges = {
            k: (min(0.0, float(v.min())), max(0.0, float(v.max()))) for k, v in values.items()
        }

    def range_of(self, tensor: str, grid: str) -> tuple[float, float]:
        assert grid in ("u8", "s8")
        return self.ranges[tensor]


@pytest.fixture(scope="session")
def seen_ranges() -> Callable[[Path, NDArray[np.float32]], SeenRanges]:
    return SeenRanges


@pytest.fixture(scope="session")
def demo_images(demo_onnx: Path, fashion_test: Any) -> NDArray[np.float32]:
    """256 test images, preprocessed."""
    spec = input_spec_of(load_onnx(demo_onnx), demo_onnx)
    return next(batches(fashion_test, spec, 256))[0]


@pytest.fixture(scope="session")
def demo_ranges(demo_onnx: Path, fashion_train: Any) -> SeenRanges:
    """Min-max ranges of the demo model over 64 training images."""
    spec = input_spec_of(load_onnx(demo_onnx), demo_onnx)
    return SeenRanges(demo_onnx, next(batches(fashion_train, spec, 64))[0])
