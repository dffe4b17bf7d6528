"""A job on the shipped Fashion-MNIST ResNet-20 with real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.base import Job
from deploy_tools.data import open_source
from deploy_tools.data.spec import InputSpec
from deploy_tools.models.checkpoint import load_state, spec_from_metadata
from deploy_tools.recipe import ModelTable

IMAGES = 48


@pytest.fixture(scope="session")
def demo_job(demo_onnx: Path, demo_checkpoint: Path, fashion_train: object) -> Job:
    """48 training images calibrate, 100 others are held out."""
    spec = spec_from_metadata(load_state(demo_checkpoint)[1])
    assert isinstance(spec, InputSpec)
    origin = ModelTable("resnet20-cifar", str(demo_checkpoint), num_classes=10)
    return Job(
        demo_onnx, spec, "fashion-mnist", None, "train",
        tuple(range(IMAGES)), tuple(range(1000, 1100)), origin,
    )  # fmt: skip


@pytest.fixture(scope="session")
def judged(demo_onnx: Path, demo_job: Job):
    """Returns the SQNR in dB and the agreement of a session with FP32 on 300 test images."""
    from deploy_tools.data.source import batches
    from deploy_tools.runtimes import open_session

    inputs, _ = next(batches(open_source("fashion-mnist", None, "test"), demo_job.spec, 300))
    wanted = open_session(demo_onnx).run(inputs)[0]

    def judge(session) -> tuple[float, float]:
        found = session.run(inputs)[0]
        noise = float(((wanted - found) ** 2).sum())
        same = wanted.argmax(1) == found.argmax(1)
        return 10 * float(np.log10((wanted**2).sum() / noise)), float(same.mean())

    return judge
