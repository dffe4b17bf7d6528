"""Which targets a file fits: every form of file, held against the runtimes themselves."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorrt_samples as samples
from onnxruntime import quantization

from deploy_tools.errors import UserError
from deploy_tools.quantization.cast import fp16_from_onnx
from deploy_tools.quantization.fits import Fit, fits_of
from deploy_tools.quantization.static import StaticConfig, qdq_from_onnx
from deploy_tools.quantization.targets import TARGETS
from deploy_tools.runtimes import RuntimeConfig, open_session


class SameRange:
    def range_of(self, tensor: str, grid: str) -> tuple[float, float]:
        return (-4.0, 4.0)


def of_target(target: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        source = path.with_name("fp32.onnx")
        onnx.save(samples.tiny(), str(source))
        qdq_from_onnx(source, SameRange(), path, StaticConfig(target))

    return write


def dynamic(*ops: str) -> Callable[[Path], None]:
    return lambda path: quantization.quantize_dynamic(
        samples.tiny(), str(path), op_types_to_quantize=list(ops)
    )


class Noise(quantization.CalibrationDataReader):
    def __init__(self) -> None:
        images = np.random.default_rng(0).normal(size=(4, 1, *samples.SHAPE)).astype(np.float32)
        self._inputs = iter([{"input": image} for image in images])

    def get_next(self) -> Any:
        return next(self._inputs, None)


def operators(path: Path) -> None:
    quantization.quantize_static(
        samples.tiny(), str(path), Noise(), quant_format=quantization.QuantFormat.QOperator
    )


def in_fp16(write: Callable[[Path], None]) -> Callable[[Path], None]:
    def cast(path: Path) -> None:
        write(path.with_name("wide.onnx"))
        fp16_from_onnx(path.with_name("wide.onnx"), path)

    return cast


def saved(make: Callable[[], onnx.ModelProto]) -> Callable[[Path], None]:
    return lambda path: onnx.save(make(), str(path))


YES, NO = True, False
# form: (how to write it, [ort-cpu, openvino, arm, x86-no-vnni, tensorrt], words of one reason)
FORMS: dict[str, tuple[Callable[[Path], None], list[bool], tuple[str, str]]] = {
    "fp32": (saved(samples.tiny), [YES, YES, YES, YES, YES], ("ort-cpu", "FP32")),
    "fp16": (in_fp16(saved(samples.tiny)), [NO, YES, YES, NO, YES], ("ort-cpu", "computes in FP32")),
    "ort-cpu": (of_target("ort-cpu"), [YES, YES, NO, NO, YES], ("x86-no-vnni", "16 bits")),
    "openvino": (of_target("openvino"), [YES, YES, NO, NO, YES], ("arm", "unsigned")),
    "arm": (of_target("arm"), [YES, NO, YES, NO, YES], ("openvino", "refuses signed")),
    "x86-no-vnni": (of_target("x86-no-vnni"), [YES, YES, NO, YES, YES], ("ort-cpu", "uint8")),
    "tensorrt": (of_target("tensorrt"), [NO, YES, NO, NO, YES], ("ort-cpu", "slower than FP32: activations around 0")),
    "tensorrt fp16": (in_fp16(of_target("tensorrt")), [NO, YES, NO, NO, YES], ("ort-cpu", "far slower")),
    "nncf": (saved(lambda: onnx.load(str(samples.NNCF))), [YES, YES, NO, NO, YES], ("arm", "unsigned")),
    "dynamic": (dynamic("Gemm", "MatMul"), [YES, YES, YES, NO, YES], ("ort-cpu", "quantized as it runs")),
    "dynamic conv": (dynamic("Conv"), [NO, YES, NO, NO, YES], ("ort-cpu", "ConvInteger")),
    "weights alone": (saved(samples.weights_alone), [NO, YES, NO, NO, YES], ("tensorrt", "FP32: only its weights have Q/DQ")),
    "operators": (operators, [YES, NO, YES, NO, YES], ("openvino", "no QLinear")),
}  # fmt: skip


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    path = tmp_path / "model.onnx"
    FORMS[request.param][0](path)
    return request.param, path


def test_each_form_of_file(form: tuple[str, Path]) -> None:
    name, path = form
    _, expected, (target, words) = FORMS[name]
    fits = fits_of(onnx.load(str(path)), ())
    assert [fit.target for fit in fits] == list(TARGETS)
    assert [fit.fits for fit in fits] == expected
    assert words in next(fit.reason for fit in fits if fit.target == target)
    assert all(fit.reason for fit in fits)


def test_tensorrt_is_what_the_lint_says() -> None:
    fit = fits_of(samples.tiny(), ["zero-point", "zero-point", "scale"])[-1]
    assert fit == Fit("tensorrt", False, "the lint refuses it: 2 x zero-point, 1 x scale")


def test_openvino_really_loads_what_fits_it_and_nothing_else(form: tuple[str, Path]) -> None:
    pytest.importorskip("onnxruntime_ep_openvino")
    name, path = form
    images = np.zeros((2, *samples.SHAPE), np.float32)
    try:
        open_session(path, RuntimeConfig("openvino")).run(images)
        runs = True
    except UserError:
        runs = False
    assert runs is FORMS[name][1][1]


def test_onnxruntime_really_fuses_unsigned_and_not_symmetric_files(tmp_path: Path) -> None:
    """Where activations are around 0 the convolutions' Relu stays, in float."""
    counts = {}
    for target in ("ort-cpu", "arm", "tensorrt"):
        of_target(target)(tmp_path / "m.onnx")
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(
            str(tmp_path / "m.onnx"), options, providers=["CPUExecutionProvider"]
        )
        optimized = onnx.load(str(tmp_path / "optimized.onnx"))
        counts[target] = Counter(node.op_type for node in optimized.graph.node)
    assert counts["ort-cpu"]["QLinearConv"] == counts["arm"]["QLinearConv"] == 2
    assert counts["tensorrt"]["QLinearConv"] < 2  # fmt: skip
