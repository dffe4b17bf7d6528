"""NNCF on the real model; skipped where the extra `peers` is not installed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.peers import nncf_static
from benchmarks.peers.base import Job
from benchmarks.peers.sessions import open_peer
from deploy_tools.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def _nncf() -> None:
    pytest.importorskip("nncf")
    nncf_static.load()


def test_the_onnx_file(demo_job: Job, judged, tmp_path: Path) -> None:
    path = tmp_path / "q.onnx"
    nncf_static.quantize(demo_job, path, batch=16, correction="none")
    ops = [node.op_type for node in onnx.load(path).graph.node]
    assert ops.count("QuantizeLinear") > 20
    sqnr, agreement = judged(open_peer(path, "onnxruntime"))
    assert 15 < sqnr < 50
    assert agreement > 0.9


def test_the_openvino_model_and_its_settings(demo_job: Job, judged, tmp_path: Path) -> None:
    found = {}
    for name, options in {
        "plain": {},
        "one image": {"batch": 1},
        "mixed": {"preset": "mixed"},
        "tensor": {"per_channel": False},
        "corrected": {"correction": "fast"},
    }.items():
        path = tmp_path / f"{name}.xml"
        nncf_static.quantize(demo_job, path, **{"batch": 16, "correction": "none"} | options)
        found[name] = judged(open_peer(path, "openvino"))
    assert all(agreement > 0.85 for _, agreement in found.values())
    # Each setting does something.
    assert len({round(sqnr, 3) for sqnr, _ in found.values()}) == len(found)
    assert found["tensor"][0] < found["plain"][0]


@pytest.mark.parametrize("suffix", [".xml", ".onnx"])
def test_accuracy_control_puts_layers_back(suffix: str, demo_job: Job, tmp_path: Path) -> None:
    """No loss of agreement is asked for at all, so some layers must go back to float."""
    counts = []
    for max_drop in (1.0, 0.0):
        path = tmp_path / f"{max_drop}{suffix}"
        few = replace(demo_job, indices=demo_job.indices[:4])
        nncf_static.quantize(few, path, batch=1, correction="none", max_drop=max_drop)
        counts.append(_quantizers(path))
    assert counts[0] > counts[1]
    with pytest.raises(UserError, match="held-out"):
        nncf_static.quantize(replace(demo_job, held_out=()), path, max_drop=0.0)


def _quantizers(path: Path) -> int:
    if path.suffix == ".xml":
        return len(re.findall(r'type="FakeQuantize"', path.read_text("utf-8")))
    return sum(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)


def test_agreement_is_with_fp32(demo_job: Job) -> None:
    images = list(demo_job.images(24))
    pairs = nncf_static._with_classes(demo_job.model, images)
    assert nncf_static._agreement_onnx(onnx.load(demo_job.model), pairs) == (1.0, None)
    wrong = [(inputs, np.where(np.arange(len(c)) < 6, -1, c)) for inputs, c in pairs]
    assert nncf_static._agreement_onnx(onnx.load(demo_job.model), wrong)[0] == 0.75


def test_unknown_settings_are_refused(demo_job: Job, tmp_path: Path) -> None:
    with pytest.raises(UserError, match='preset "fast"'):
        nncf_static.quantize(demo_job, tmp_path / "q.onnx", preset="fast")
