"""What tools made, behind one interface."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.base import Job
from benchmarks.peers.sessions import FunctionSession, open_peer
from deploy_tools.errors import UserError


def test_a_format_runs_only_where_it_can() -> None:
    for name, runtime in (("a.onnx", "torch"), ("a.xml", "onnxruntime"), ("a.pt2", "torch")):
        with pytest.raises(UserError, match="does not run"):
            open_peer(Path(name), runtime)
    with pytest.raises(UserError, match="does not run"):
        open_peer(Path("a.txt"), "onnxruntime")


def test_onnx_files_in_every_runtime(demo_job: Job, judged) -> None:
    for runtime in ("onnxruntime", "onnxruntime, no fusions"):
        session = open_peer(demo_job.model, runtime)
        assert session.runtime == "onnxruntime"
        assert judged(session)[0] > 80
    pytest.importorskip("onnxruntime_ep_openvino")
    assert open_peer(demo_job.model, "openvino").runtime == "openvino"


def test_a_function_gets_small_batches() -> None:
    seen = []

    def function(inputs):
        seen.append(len(inputs))
        return inputs.sum(axis=(1, 2, 3))[:, None]

    session = FunctionSession("some", "int8", function, batch=4)
    inputs = np.arange(10 * 12, dtype=np.float32).reshape(10, 3, 2, 2)
    (logits,) = session.run(inputs)
    assert seen == [4, 4, 2]
    np.testing.assert_array_equal(logits[:, 0], inputs.sum(axis=(1, 2, 3)))
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.run(inputs)
