"""OpenVINO behind onnxruntime: the precision that it reports is the one that it runs in."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx_samples import saved

from deploy_tools.data.source import batches
from deploy_tools.errors import MissingDependencyError, UserError
from deploy_tools.onnx_files import input_spec_of, load_onnx
from deploy_tools.quantization.dynamic import dynamic_from_onnx
from deploy_tools.runtimes import RuntimeConfig, open_session, openvino


def test_without_the_package(small_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", None)
    with pytest.raises(MissingDependencyError) as caught:
        open_session(small_onnx, RuntimeConfig("openvino"))
    assert caught.value.exit_code == 3
    assert "deploy-tools[openvino]" in caught.value.hint


def test_an_onnxruntime_without_plugins(small_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime_ep_openvino")
    monkeypatch.delattr("onnxruntime.register_execution_provider_library")
    with pytest.raises(MissingDependencyError, match="cannot load plugin providers"):
        open_session(small_onnx, RuntimeConfig("openvino"))


def test_precision_that_is_asked_for() -> None:
    assert openvino._precision("", True) == "bf16"
    assert openvino._precision("", False) == "fp32"
    assert openvino._precision("fp32", True) == "fp32"
    assert openvino._precision("bf16", True) == "bf16"
    with pytest.raises(MissingDependencyError, match="bfloat16"):
        openvino._precision("bf16", False)
    for wrong in ("fp16", "int8"):
        with pytest.raises(UserError, match=f"does not run {wrong}"):
            openvino._precision(wrong, True)


@pytest.fixture(scope="module")
def images(demo_onnx: Path, fashion_test: Any) -> Any:
    spec = input_spec_of(load_onnx(demo_onnx), demo_onnx)
    return next(batches(fashion_test, spec, 32))[0]


def relative(found: Any, expected: Any) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_fp32_is_fp32(demo_onnx: Path, images: Any) -> None:
    pytest.importorskip("onnxruntime_ep_openvino")
    expected = open_session(demo_onnx).run(images)[0]
    session = open_session(demo_onnx, RuntimeConfig("openvino", precision="fp32"))
    assert session.precision == "fp32"
    assert relative(session.run(images)[0], expected) < 1e-4


def test_bf16_is_the_default_where_the_cpu_has_it(demo_onnx: Path, images: Any) -> None:
    pytest.importorskip("onnxruntime_ep_openvino")
    import onnxruntime

    device = openvino._cpu_device(onnxruntime)
    if "BF16" not in device.ep_metadata.get("OPTIMIZATION_CAPABILITIES", ""):
        pytest.skip("this CPU has no bfloat16 arithmetic")
    expected = open_session(demo_onnx).run(images)[0]
    default = open_session(demo_onnx, RuntimeConfig("openvino"))
    demanded = open_session(demo_onnx, RuntimeConfig("openvino", precision="bf16"))
    assert default.precision == demanded.precision == "bf16"
    # bfloat16 keeps 8 bits of mantissa: about 2 to 3 digits.
    assert 1e-3 < relative(default.run(images)[0], expected) < 0.1
    np.testing.assert_array_equal(default.run(images)[0], demanded.run(images)[0])


def test_a_quantized_file_says_what_the_rest_runs_in(
    demo_onnx: Path, images: Any, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime_ep_openvino")
    from deploy_tools.quantization.static import qdq_from_onnx

    class Wide:
        def range_of(self, tensor: str, grid: str) -> tuple[float, float]:
            return -4.0, 8.0

    qdq_from_onnx(demo_onnx, Wide(), tmp_path / "q.onnx")
    session = open_session(tmp_path / "q.onnx", RuntimeConfig("openvino", precision="fp32"))
    assert session.precision == "int8+fp32"
    assert session.provider == "OpenVINOExecutionProvider"
    expected = open_session(tmp_path / "q.onnx").run(images)[0]
    assert relative(session.run(images)[0], expected) < 0.05


def test_a_node_that_openvino_cannot_run_does_not_fall_back_in_silence(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_ep_openvino")
    graph = helper.make_graph(
        [helper.make_node("Det", ["input"], ["logits"])],
        "determinant",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 1, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model = saved(proto, tmp_path / "m.onnx")
    open_session(model)
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        open_session(model, RuntimeConfig("openvino", 1))
    assert str(model) in caught.value.message


def test_a_dynamically_quantized_file(small_onnx: Path, small_inputs: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_ep_openvino")
    dynamic_from_onnx(small_onnx, tmp_path / "d.onnx")
    session = open_session(tmp_path / "d.onnx", RuntimeConfig("openvino", 1, "fp32"))
    assert session.precision == "int8+fp32"
    expected = open_session(tmp_path / "d.onnx").run(small_inputs)[0]
    assert relative(session.run(small_inputs)[0], expected) < 0.05
