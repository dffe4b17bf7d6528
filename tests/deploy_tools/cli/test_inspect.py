"""inspect: files that it can and cannot describe."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx_samples import saved, two_gemms

from deploy_tools.cli.main import main
from deploy_tools.data.spec import METADATA_KEY

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
