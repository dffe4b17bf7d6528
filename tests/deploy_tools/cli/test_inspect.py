"""inspect: files that it can and cannot describe."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import tensorrt_samples
from onnx_samples import saved, two_gemms

from deploy_tools.cli.main import main
from deploy_tools.data.spec import METADATA_KEY
from deploy_tools.quantization.targets import TARGETS
from deploy_tools.runtimes import flavours

Capture = pytest.CaptureFixture[str]


def test_a_file_without_an_input_spec_is_described(tmp_path: Path, capsys: Capture) -> None:
    path = saved(two_gemms(metadata={}), tmp_path / "m.onnx")
    assert main(["inspect", str(path)]) == 0
    assert "preprocessing unknown" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["1" * 5000, '{"size": [0, 4], "mean": [0.5], "std": [1]}'])
def test_a_damaged_input_spec_names_the_file(text: str, tmp_path: Path, capsys: Capture) -> None:
    path = saved(two_gemms(metadata={METADATA_KEY: text}), tmp_path / "m.onnx")
    assert main(["inspect", str(path)]) == 2
    shown = capsys.readouterr().err
    assert f"the input spec in {path} is damaged" in shown
    assert "Traceback" not in shown


def test_a_float_file_fits_every_target(tmp_path: Path, capsys: Capture) -> None:
    path = saved(two_gemms(), tmp_path / "m.onnx")
    assert main(["inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(fit["target"], fit["fits"]) for fit in found["targets"]] == [
        (t, True) for t in TARGETS
    ]
    assert found["tensorrt"]["findings"] == found["tensorrt"]["hints"] == []


def test_hints_are_shown_for_a_file_that_tensorrt_takes(tmp_path: Path, capsys: Capture) -> None:
    path = saved(tensorrt_samples.good(), tmp_path / "m.onnx")
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "  tensorrt     yes  INT8, and FP32 for the rest" in shown
    assert "hints for TensorRT\n  fp32-rest: " in shown
    assert "what keeps TensorRT" not in shown


def test_a_tensorrt_that_is_too_old_is_named(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.py").write_text('__version__ = "8.6.1"')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # whatever is imported is gone afterwards
    monkeypatch.delitem(sys.modules, "tensorrt")
    path = saved(tensorrt_samples.tiny(opset=22), tmp_path / "m.onnx")
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "TensorRT 8.6.1 is too old" in shown
    assert "none is installed" not in shown


def test_without_tensorrt_the_findings_are_about_any(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flavours, "_is_installed", lambda module: False)
    path = saved(tensorrt_samples.tiny(opset=22), tmp_path / "m.onnx")
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "any TensorRT from 10.0 on (none is installed here), opset 9 to 20" in shown
    assert "opset: the file has opset 22" in shown
