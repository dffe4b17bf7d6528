"""torchao's PT2E flow on the real model; skipped where the extra `peers` is not installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.peers import torchao_static
from benchmarks.peers.base import Job
from benchmarks.peers.sessions import open_peer


def test_the_program_quantizes_what_layers_read(demo_job: Job, judged, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    import torch

    torchao_static.load()
    path = tmp_path / "q.pt2"
    torchao_static.quantize(demo_job, path)
    session = open_peer(path, "torch, simulated")
    targets = [str(node.target) for node in torch.export.load(path).graph.nodes]
    assert sum("dequantize_per_channel" in target for target in targets) > 15
    sqnr, agreement = judged(session)
    assert 15 < sqnr < 50
    assert agreement > 0.9
