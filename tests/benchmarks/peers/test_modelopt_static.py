"""NVIDIA ModelOpt: named where it is missing; run where its environment was made."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onnx
import pytest

from benchmarks.peers import modelopt_static
from benchmarks.peers.base import Job
from benchmarks.peers.environment import python_of
from benchmarks.peers.measure import measure
from benchmarks.peers.sessions import open_peer
from deploy_tools.errors import MissingDependencyError


def test_a_missing_tool_names_the_command(demo_job: Job, tmp_path: Path) -> None:
    if importlib.util.find_spec("modelopt") is not None:
        pytest.skip("it is installed here")
    with pytest.raises(MissingDependencyError, match=r"benchmarks\.peers\.environment modelopt"):
        measure("benchmarks.peers.modelopt_static", demo_job, tmp_path / "q.onnx", {})
    with pytest.raises(MissingDependencyError):
        modelopt_static.load()


def test_max_calibration_in_its_environment(demo_job: Job, judged, tmp_path: Path) -> None:
    try:
        python = python_of("modelopt")
    except MissingDependencyError as error:
        pytest.skip(str(error))
    before = demo_job.model.read_bytes()
    path = tmp_path / "q.onnx"
    made = measure("benchmarks.peers.modelopt_static", demo_job, path, {"method": "max"}, python)
    assert demo_job.model.read_bytes() == before
    assert made.seconds > 0
    assert sum(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node) > 20
    sqnr, agreement = judged(open_peer(path, "onnxruntime"))
    assert 10 < sqnr < 45
    assert agreement > 0.85
