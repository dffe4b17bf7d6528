"""OpenVINO's own API gives the file's logits, in every mode."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.openvino_native import NativeOpenVino
from benchmarks.peers.setting import Setting
from benchmarks.statistics import logit_sqnr
from deploy_tools.errors import UserError
from deploy_tools.runtimes import open_session

pytest.importorskip("openvino")


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(12, 1, 8, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("hint", "setting"),
    [
        ("LATENCY", Setting(1, 1, 1)),
        ("LATENCY", Setting(2, 1, 4)),
        ("LATENCY", Setting(2, 1, 4, fixed=True)),
        ("THROUGHPUT", Setting(1, 2, 3)),
        ("THROUGHPUT", Setting(1, 2, 3, fixed=True)),
        ("THROUGHPUT", Setting(1, 2, 12)),
    ],
)
def test_logits_are_the_file_s_in_order(tiny: Path, images, hint, setting) -> None:
    (wanted,) = open_session(tiny).run(images)
    session = NativeOpenVino(tiny, hint, setting, quantized=False)
    for _ in range(2):
        (found,) = session.run(images)
        # bf16 where the CPU has it; rows in another order would give next to 0 dB.
        assert logit_sqnr(wanted, found) > 25
    assert session.precision in ("fp32", "bf16", "fp16")
    assert (session.threads, session.streams) == (setting.threads, setting.streams)
    assert session.output_names == ("logits",)
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.run(images)


def test_results_are_not_overwritten_by_the_next_call(tiny: Path, images) -> None:
    for setting in (Setting(1, 1, 4), Setting(1, 2, 4)):
        session = NativeOpenVino(tiny, "THROUGHPUT", setting, quantized=True)
        (first,) = session.run(images)
        kept = first.copy()
        session.run(images[::-1].copy())
        np.testing.assert_array_equal(first, kept)
        assert session.precision.startswith("int8+")


def test_callers_at_a_time_get_their_own_results(tiny: Path, images) -> None:
    session = NativeOpenVino(tiny, "THROUGHPUT", Setting(1, 2, 1), quantized=False)
    wanted = [session.run(image[None])[0] for image in images]
    found: dict[int, np.ndarray] = {}

    def call(index: int) -> None:
        for _ in range(20):
            found[index] = session.run(images[index : index + 1])[0]

    callers = [threading.Thread(target=call, args=(index,)) for index in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for index, logits in found.items():
        np.testing.assert_allclose(logits, wanted[index], rtol=1e-2, atol=1e-2)


def test_what_does_not_fit_is_refused(tiny: Path, images) -> None:
    with pytest.raises(UserError, match="LATENCY"):
        NativeOpenVino(tiny, "LATENCYY", Setting(), quantized=False)
    with pytest.raises(UserError, match="one stream"):
        NativeOpenVino(tiny, "LATENCY", Setting(1, 2, 1), quantized=False)
    session = NativeOpenVino(tiny, "LATENCY", Setting(1, 1, 5), quantized=False)
    with pytest.raises(UserError, match="multiple of 5"):
        session.run(images)
