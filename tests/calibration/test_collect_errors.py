from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from calibration.collect import CalibrateConfig, statistics_from_images
from calibration.select import SelectConfig, select_images
from deploy_tools.data.source import ArraySource
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import UserError


@pytest.mark.parametrize("threads", [1, 2])
def test_a_bad_value_in_any_image_ends_the_pass(demo_onnx: Path, threads: int) -> None:
    # A std so small that a bright pixel overflows float32 to infinity in the second image only.
    images = np.zeros((4, 28, 28), np.uint8)
    images[1] = 255
    source = ArraySource("npz", "train", images, np.arange(4) % 2, ("a", "b"))
    spec = InputSpec(size=(28, 28), mean=(0.0,), std=(1e-39,))
    selection = select_images(source, SelectConfig(4, "random"))
    found: list[BaseException] = []

    def collect() -> None:
        try:
            config = CalibrateConfig(threads=threads, batch=1)
            statistics_from_images(
                demo_onnx, ["input", "conv1/relu"], source, selection, spec, config
            )
        except BaseException as error:
            found.append(error)

    worker = threading.Thread(target=collect, daemon=True)
    worker.start()
    worker.join(timeout=60)
    assert not worker.is_alive(), "calibration hangs"
    assert isinstance(found[0], UserError), found
