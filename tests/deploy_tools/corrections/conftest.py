"""Real models and real images for the corrections."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from correction_samples import Images

from deploy_tools.data import fashion_mnist
from deploy_tools.data.preprocess import preprocess
from deploy_tools.data.source import batches
from deploy_tools.onnx_files import input_spec_of, load_onnx


@pytest.fixture(scope="session")
def demo_images(fashion_train: Any) -> Images:
    """512 training images for the demo model: 256 to calibrate with, the rest to judge."""
    return next(batches(fashion_train, fashion_mnist.SPEC, 512))[0]


@pytest.fixture(scope="session")
def public_onnx(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    """The public CIFAR-10 ResNet-20, whose shortcuts are Slice and Pad; do not write to it."""
    from deploy_tools.export import onnx_from_module
    from deploy_tools.pipeline.model import fold_model, load_model
    from deploy_tools.recipe import InputTable, ModelTable

    weights = shared_data / "weights" / "resnet20-12fca82f.th"
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    table = ModelTable("resnet20-cifar-a", str(weights))
    loaded = load_model(table, InputTable(size=(32, 32), mean=mean, std=std))
    path = tmp_path_factory.mktemp("public") / "fp32.onnx"
    onnx_from_module(fold_model(loaded)[0], loaded.spec, path)
    return path


@pytest.fixture(scope="session")
def public_images(public_onnx: Path, shared_data: Path) -> Images:
    """512 training images of CIFAR-10, of all classes: 256 to calibrate with, the rest to judge."""
    spec = input_spec_of(load_onnx(public_onnx), public_onnx)
    with np.load(shared_data / "cifar10" / "cifar10_train_calib2000.npz") as file:
        chosen = np.random.Generator(np.random.PCG64(0)).permutation(len(file["images"]))[:512]
        return np.stack([preprocess(file["images"][i], spec, str(i)) for i in chosen])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors, and sums in one order: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
