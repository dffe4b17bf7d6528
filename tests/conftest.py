"""What the tests share: the real data, where it is, and one small exported model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # everything here is about the CPU

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the public CIFAR-10 ResNets, CIFAR-10 and the flower photos.

    $DEPLOY_TOOLS_TEST_DATA, or shared/data beside the checkout; tests that need it skip
    where it is absent.
    """
    folder = Path(os.environ.get("DEPLOY_TOOLS_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "README.md").is_file():
        pytest.skip("the shared test data is absent (set DEPLOY_TOOLS_TEST_DATA to its folder)")
    return folder


@pytest.fixture(scope="session")
def fashion_test():
    """The 10,000 test images of Fashion-MNIST; `make test` sees to it that they are there."""
    from deploy_tools.data import fashion_mnist

    return fashion_mnist.load("test")


@pytest.fixture(scope="session")
def fashion_train():
    """The 60,000 training images of Fashion-MNIST."""
    from deploy_tools.data import fashion_mnist

    return fashion_mnist.load("train")


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    """The checkpoint that the package ships."""
    return ROOT / "deploy_tools" / "assets" / "resnet20-fashion-mnist.safetensors"


@pytest.fixture(scope="session")
def demo_onnx(tmp_path_factory: pytest.TempPathFactory, demo_checkpoint: Path) -> Path:
    """The shipped ResNet-20, folded and exported to FP32 ONNX; do not write to it."""
    from deploy_tools.export import onnx_from_module
    from deploy_tools.pipeline.model import fold_model, load_model
    from deploy_tools.recipe import InputTable, ModelTable

    loaded = load_model(ModelTable("resnet20-cifar", str(demo_checkpoint)), InputTable())
    path = tmp_path_factory.mktemp("demo") / "fp32.onnx"
    onnx_from_module(fold_model(loaded)[0], loaded.spec, path)
    return path
