"""What the QAT tests share: real images, and min-max ranges of a float file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deploy_tools.data import fashion_mnist
from deploy_tools.data.source import batches
from deploy_tools.onnx_files import load_onnx
from deploy_tools.quantization.prepare import prepared
from deploy_tools.quantization.static import activation_tensors
from deploy_tools.training.onnx_module import OnnxModule


class SeenRanges:
    """The smallest and largest value of every tensor on some images."""

    def __init__(self, model: Path, images: Tensor) -> None:
        proto = prepared(load_onnx(model))
        with torch.no_grad():
            seen = OnnxModule(proto).values(images, activation_tensors(proto))
        self.ends = {name: (float(v.min()), float(v.max())) for name, v in seen.items()}

    def range_of(self, tensor: str, grid: str) -> tuple[float, float]:
        low, high = self.ends[tensor]
        low, high = min(low, 0.0), max(high, 0.0)
        return (low, high) if grid == "u8" else (-max(-low, high), max(-low, high))


@pytest.fixture(scope="session")
def seen_ranges() -> type[SeenRanges]:
    return SeenRanges


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order, so that the same run gives the same result."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def fashion_images(fashion_train: Any) -> Callable[[int, int], Tensor]:
    """Return (start, stop) -> preprocessed training images of Fashion-MNIST."""

    def load(start: int, stop: int) -> Tensor:
        parts = batches(fashion_train, fashion_mnist.SPEC, 500, range(start, stop))
        return torch.from_numpy(np.concatenate([inputs for inputs, _ in parts]))

    return load
