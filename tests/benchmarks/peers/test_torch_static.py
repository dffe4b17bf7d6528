"""torch's FX graph mode and its dynamic quantization on the real model."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.peers import torch_static
from benchmarks.peers.base import Job
from benchmarks.peers.sessions import open_peer
from deploy_tools.errors import MissingDependencyError, UserError


@pytest.fixture(scope="module", autouse=True)
def _torch() -> None:
    pytest.importorskip("torch")
    try:
        torch_static.load()
    except MissingDependencyError as error:
        pytest.skip(str(error))


def _operators(path: Path) -> str:
    import torch

    return str(torch.jit.load(str(path)).inlined_graph)


def test_static_quantizes_the_convolutions(demo_job: Job, judged, tmp_path: Path) -> None:
    found = {}
    for per_channel in (True, False):
        path = tmp_path / f"{per_channel}.pt"
        torch_static.quantize(demo_job, path, per_channel=per_channel)
        assert _operators(path).count("quantized::conv2d") > 15
        assert path.stat().st_size < 0.6 * demo_job.model.stat().st_size
        sqnr, agreement = judged(open_peer(path, "torch"))
        assert 10 < sqnr < 45
        assert agreement > 0.85
        found[per_channel] = sqnr
    assert found[True] != found[False]


def test_dynamic_leaves_every_convolution_in_float(demo_job: Job, judged, tmp_path: Path) -> None:
    path = tmp_path / "q.pt"
    torch_static.quantize(demo_job, path, method="dynamic")
    operators = _operators(path)
    assert operators.count("quantized::linear_dynamic") == 1
    assert "quantized::conv2d" not in operators
    assert 30 < judged(open_peer(path, "torch"))[0] < 80


def test_unknown_settings_are_refused(demo_job: Job, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="qnnpack"):
        torch_static.quantize(demo_job, tmp_path / "q.pt", backend="qnnpack")
