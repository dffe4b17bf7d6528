"""Files of other tools that TensorRT must not get: build refuses each, inspect says why."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorrt_samples as samples
from onnxruntime import quantization

from deploy_tools.cli.main import main

Capture = pytest.CaptureFixture[str]


class Noise(quantization.CalibrationDataReader):
    """A few inputs for onnxruntime's own calibrator."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        shape = (1, *samples.SHAPE)
        self._inputs = iter(
            [{"input": generator.normal(size=shape).astype(np.float32)} for _ in range(4)]
        )

    def get_next(self) -> Any:
        return next(self._inputs, None)


def static(**options: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        quantization.quantize_static(samples.tiny(), str(path), Noise(), **options)

    return write


def dynamic(path: Path) -> None:
    quantization.quantize_dynamic(samples.tiny(), str(path), op_types_to_quantize=["Conv"])


def saved(make: Callable[[], onnx.ModelProto]) -> Callable[[Path], None]:
    return lambda path: onnx.save(make(), str(path))


@dataclass(frozen=True)
class Bad:
    """How to write a file, and one place that has to be named."""

    write: Callable[[Path], None]
    rule: str
    node: str
    tensor: str


CORPUS = {
    "nncf": Bad(saved(lambda: onnx.load(str(samples.NNCF))), "zero-point", samples.PAIR[0], samples.ZERO),
    "onnxruntime": Bad(static(), "zero-point", "input_QuantizeLinear", "input_zero_point"),
    "onnxruntime-u8s8": Bad(static(activation_type=quantization.QuantType.QUInt8), "zero-point", "conv1/relu_QuantizeLinear", "conv1/relu_zero_point"),
    "onnxruntime-bias": Bad(static(), "quantized-bias", "conv1.bias_DequantizeLinear", "conv1.bias_quantized"),
    "onnxruntime-qoperator": Bad(static(quant_format=quantization.QuantFormat.QOperator), "integer-operator", "conv1_quant", "conv1_quantized"),
    "conv-integer": Bad(dynamic, "integer-operator", "conv1_quant", "conv1_output_quantized"),
    "fixed-batch": Bad(saved(lambda: samples.tiny(4)), "fixed-batch", "", "input"),
    "opset": Bad(saved(lambda: samples.tiny(opset=26)), "opset", "", ""),
    "zero-point": Bad(saved(lambda: samples.with_zero_point(np.int8(-7))), "zero-point", samples.PAIR[0], samples.ZERO),
}  # fmt: skip


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """onnxruntime advises to pre-process, on the root logger."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(params=CORPUS)
def bad(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Bad, Path]:
    path = tmp_path / f"{request.param}.onnx"
    CORPUS[request.param].write(path)
    return CORPUS[request.param], path


def place(bad: Bad) -> str:
    names = (("node", bad.node), ("tensor", bad.tensor))
    said = ", ".join(f'{what} "{name}"' for what, name in names if name)
    return f"{bad.rule}: {said}"


def test_build_refuses_it_by_node_and_tensor(bad: tuple[Bad, Path], capsys: Capture) -> None:
    pytest.importorskip("tensorrt_rtx")
    case, path = bad
    out = path.parent / "out"
    args = ["build", str(path), "--flavour", "tensorrt-rtx", "-o", str(out), "-q"]
    assert main(args) == 2
    shown = capsys.readouterr().err
    assert f"{path} cannot become a TensorRT for RTX" in shown
    assert f"\n  {place(case)}" in shown
    assert "Traceback" not in shown
    assert not list(out.glob("*.engine*"))


def test_inspect_shows_the_same_findings(bad: tuple[Bad, Path], capsys: Capture) -> None:
    case, path = bad
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert place(case) in shown
    assert "tensorrt     no   the lint refuses it" in shown
    assert main(["inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    findings = [(f["rule"], f["node"], f["tensor"]) for f in found["tensorrt"]["findings"]]
    assert (case.rule, case.node, case.tensor) in findings
    assert {f["target"]: f["fits"] for f in found["targets"]}["tensorrt"] is False
    assert found["tensorrt"]["hints"] == []


def test_explain_refuses_it_too(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("tensorrt_rtx")
    assert main(["explain", str(samples.NNCF), "--flavour", "tensorrt-rtx", "-q"]) == 2
    assert samples.ZERO in capsys.readouterr().err
