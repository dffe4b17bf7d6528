"""What the tests share: the real data, where it is, and one small exported model."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs: everything here is about the CPU, but for `-m gpu` (`make gpu-test`)."""
    chosen = config.getoption("markexpr", "")
    if not re.search(r"(?<!not )\bgpu\b", chosen):
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with what takes longest, so that no worker ends alone with it."""
    items.sort(key=lambda item: item.path.name != "test_shared_models.py")


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


@pytest.fixture(scope="session")
def demo_engine(tmp_path_factory: pytest.TempPathFactory, demo_onnx: Path) -> Path:
    """An engine of `demo_onnx` for batches of 1 to 32, with its sidecar; do not write to it."""
    pytest.importorskip("tensorrt_rtx")
    from deploy_tools.engines.build import BuildConfig, engine_from_onnx

    path = tmp_path_factory.mktemp("engine") / "fp32.engine"
    engine_from_onnx(demo_onnx, path, BuildConfig("tensorrt-rtx", "1:8:32"))
    return path
