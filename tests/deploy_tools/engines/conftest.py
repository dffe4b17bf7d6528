"""The shipped ResNet-20 as the files that engines are built from, and an installed TensorRT."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_samples import Files, files_of

from deploy_tools.runtimes.flavours import Flavour, find_flavour


@pytest.fixture(scope="session")
def demo_files(demo_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return files_of(demo_onnx, tmp_path_factory.mktemp("precisions"))


@pytest.fixture(scope="session")
def rtx() -> Flavour:
    """TensorRT for RTX, which builds without a GPU."""
    pytest.importorskip("tensorrt_rtx")
    return find_flavour("tensorrt-rtx")
