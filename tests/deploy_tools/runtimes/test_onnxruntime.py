"""onnxruntime's CPU provider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx_samples import saved

from deploy_tools.errors import UserError
from deploy_tools.quantization.dynamic import dynamic_from_onnx
from deploy_tools.runtimes import RuntimeConfig, open_session
from deploy_tools.runtimes.onnxruntime import session_options


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_reach_the_session(small_onnx: Path, threads: int) -> None:
    session: Any = open_session(small_onnx, RuntimeConfig(threads=threads))
    options = session._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, 1)
    assert session._session.get_providers() == ["CPUExecutionProvider"]


def test_fusions_can_be_switched_off() -> None:
    level = onnxruntime.GraphOptimizationLevel
    assert session_options(onnxruntime, 1, False).graph_optimization_level == level.ORT_DISABLE_ALL
    assert session_options(onnxruntime, 1, True).graph_optimization_level == level.ORT_ENABLE_ALL


def test_fusions_do_not_change_the_result(small_onnx: Path, small_inputs: Any) -> None:
    on, off = (
        open_session(small_onnx, RuntimeConfig(threads=1, fusions=fusions)).run(small_inputs)[0]
        for fusions in (True, False)
    )
    np.testing.assert_allclose(on, off, rtol=1e-5, atol=1e-6)


def test_precision(small_onnx: Path, tmp_path: Path) -> None:
    assert open_session(small_onnx).precision == "fp32"
    dynamic_from_onnx(small_onnx, tmp_path / "d.onnx")
    assert open_session(tmp_path / "d.onnx").precision == "int8+fp32"
    told = open_session((tmp_path / "d.onnx").read_bytes())
    assert told.precision == "int8+fp32"


def test_precision_of_a_file_that_does_not_say_it(small_onnx: Path, tmp_path: Path) -> None:
    dynamic_from_onnx(small_onnx, tmp_path / "d.onnx")
    proto = onnx.load(str(tmp_path / "d.onnx"))
    del proto.metadata_props[:]
    assert open_session(proto.SerializeToString()).precision == "int8+fp32"
    assert open_session(saved(proto, tmp_path / "bare.onnx")).precision == "int8+fp32"


def test_precision_of_what_another_tool_made_of_our_file(small_onnx: Path, tmp_path: Path) -> None:
    """NNCF keeps our metadata and our name as the producer."""
    dynamic_from_onnx(small_onnx, tmp_path / "d.onnx")
    proto = onnx.load(str(tmp_path / "d.onnx"))
    given = onnx.load(str(small_onnx))
    proto.producer_name = given.producer_name
    onnx.helper.set_model_props(proto, {p.key: p.value for p in given.metadata_props})
    assert open_session(saved(proto, tmp_path / "theirs.onnx")).precision == "int8+fp32"
    given.doc_string = "made for QuantizeLinear"
    assert open_session(saved(given, tmp_path / "said.onnx")).precision == "fp32"
    assert open_session(given.SerializeToString()).precision == "fp32"


@pytest.mark.parametrize("precision", ["bf16", "fp16", "int8"])
def test_other_precisions_are_refused(small_onnx: Path, precision: str) -> None:
    with pytest.raises(UserError, match=f"does not run {precision}"):
        open_session(small_onnx, RuntimeConfig(precision=precision))
