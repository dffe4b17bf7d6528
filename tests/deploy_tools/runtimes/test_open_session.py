"""What every runtime has in common: names, files, threads, closing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy_tools.errors import UserError
from deploy_tools.runtimes import ENGINE_RUNTIMES, RUNTIMES, RuntimeConfig, open_session
from deploy_tools.runtimes.base import usable_cores

# Those that run ONNX files; test_tensorrt.py is about the others.
EXTRA = {"onnxruntime": "onnxruntime", "openvino": "onnxruntime_ep_openvino"}


@pytest.fixture(params=sorted(EXTRA))
def runtime(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(EXTRA[request.param])
    return str(request.param)


def test_unknown_runtime(small_onnx: Path) -> None:
    with pytest.raises(UserError, match='Did you mean "openvino"'):
        open_session(small_onnx, RuntimeConfig("openvnio"))
    assert set(RUNTIMES) == {*EXTRA, *ENGINE_RUNTIMES}


def test_what_belongs_to_engines_is_refused(runtime: str, small_onnx: Path) -> None:
    for wrong in ({"memory": "pycuda"}, {"cuda_graph": True}):
        with pytest.raises(UserError, match="belong to tensorrt and tensorrt-rtx"):
            open_session(small_onnx, RuntimeConfig(runtime, **wrong))


def test_missing_and_garbage_files(runtime: str, tmp_path: Path) -> None:
    (tmp_path / "garbage.onnx").write_bytes(b"garbage")
    (tmp_path / "empty.onnx").write_bytes(b"")
    for name, words in (
        ("none.onnx", "does not exist"),
        ("garbage.onnx", "cannot be loaded"),
        ("empty.onnx", "cannot be loaded"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            open_session(tmp_path / name, RuntimeConfig(runtime))
        assert str(tmp_path / name) in caught.value.message
        assert "\n" not in caught.value.message
    with pytest.raises(UserError, match="the model cannot be loaded"):
        open_session(b"garbage", RuntimeConfig(runtime))


def test_bytes_and_files_give_the_same(runtime: str, small_onnx: Path, small_inputs: Any) -> None:
    config = RuntimeConfig(runtime, 1, "fp32")
    results = [
        open_session(model, config).run(small_inputs)
        for model in (small_onnx, small_onnx.read_bytes())
    ]
    assert len(results[0]) == 1
    assert results[0][0].dtype == np.float32
    np.testing.assert_array_equal(results[0][0], results[1][0])


def test_what_a_session_says(runtime: str, small_onnx: Path) -> None:
    session = open_session(small_onnx, RuntimeConfig(runtime, 1, "fp32"))
    assert (session.runtime, session.threads, session.precision) == (runtime, 1, "fp32")
    assert (session.input_name, session.output_names) == ("input", ("logits",))


def test_no_threads_means_every_usable_core(runtime: str, small_onnx: Path) -> None:
    assert open_session(small_onnx, RuntimeConfig(runtime)).threads == usable_cores() >= 1


def test_negative_threads_are_refused(runtime: str, small_onnx: Path) -> None:
    with pytest.raises(UserError, match="threads"):
        open_session(small_onnx, RuntimeConfig(runtime, threads=-1))


def test_a_closed_session_does_not_run(runtime: str, small_onnx: Path, small_inputs: Any) -> None:
    session = open_session(small_onnx, RuntimeConfig(runtime, 1))
    session.close()
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.run(small_inputs)


def test_any_batch(runtime: str, small_onnx: Path, small_inputs: Any) -> None:
    session = open_session(small_onnx, RuntimeConfig(runtime, 1, "fp32"))
    whole = session.run(small_inputs)[0]
    parts = np.concatenate([session.run(small_inputs[i : i + 2])[0] for i in (0, 2, 4)])
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)


def test_the_registry_imports_no_runtime() -> None:
    code = (
        "import sys, deploy_tools.runtimes as r\n"
        "print([m for m in ('onnxruntime', 'onnx', 'torch', 'openvino') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
