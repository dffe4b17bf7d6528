"""A folder for the output that cannot be made: exit 8 and one line, whichever the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx_samples import saved, two_gemms

from deploy_tools.cli.main import main

VERBS = ("fuse", "export", "calibrate", "quantize dynamic")


@pytest.mark.parametrize("verb", VERBS)
def test_an_output_folder_below_a_file(
    verb: str, tmp_path: Path, demo_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    model = saved(two_gemms(), tmp_path / "m.onnx")
    np.savez(tmp_path / "train.npz", images=np.zeros((4, 4, 4), np.uint8), labels=np.arange(4))
    checkpoint = ["--arch", "resnet20-cifar", "--checkpoint", str(demo_checkpoint)]
    data = ["--source", "npz", "--data", str(tmp_path), "--images", "4", "-q"]
    more = {
        "fuse": checkpoint,
        "export": checkpoint,
        "calibrate": [str(model), *data],
        "quantize dynamic": [str(model)],
    }[verb]
    assert main([*verb.split(), *more, "-o", str(tmp_path / "file" / "out")]) == 8
    shown = capsys.readouterr().err
    assert "cannot be written" in shown
    assert "Traceback" not in shown
