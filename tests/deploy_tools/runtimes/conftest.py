"""A small float model and its inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx_samples import saved, two_gemms


@pytest.fixture
def small_onnx(tmp_path: Path) -> Path:
    return saved(two_gemms(), tmp_path / "small.onnx")


@pytest.fixture(scope="session")
def small_inputs() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(6, 1, 4, 4)).astype(np.float32)
