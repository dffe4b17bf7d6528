"""[input] dtype = "uint8": every variant takes pixels, the references keep their float input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.predictions import Predictions
from deploy_tools.errors import UserError
from deploy_tools.onnx_files import input_spec_of, load_onnx
from deploy_tools.pipeline import RunResult, run_recipe
from deploy_tools.recipe import InputTable, Recipe

PIXELS = "input.dtype='uint8'"


def test_a_run_with_pixels_predicts_the_same(
    small_run: tuple[Path, RunResult], recipe_with: Callable[..., Recipe], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = run_recipe(recipe_with(PIXELS), out, "run").report
    files = {v["id"]: v["file"] for v in report["variants"]}
    assert files == {
        "fp32-torch": None,
        "fp32-ort": "fp32.onnx",
        "int8-dynamic-ort": "int8-dynamic-ort-uint8.onnx",
        "int8-static-ort": "int8-static-ort-uint8.onnx",
    }
    for variant in report["variants"]:
        for part in ("build", "accuracy", "speed"):
            assert variant[part]["status"] == "ok", variant[part]
        if variant["file"]:
            path = out / variant["file"]
            assert input_spec_of(load_onnx(path), path).takes_pixels == ("uint8" in path.name)
        name = f"predictions/{variant['id']}.npz"
        found, float_path = Predictions.load(out / name), Predictions.load(small_run[0] / name)
        assert (found.top1 == float_path.top1).mean() >= 0.99
        scale = np.abs(float_path.logits).max()
        assert np.abs(found.logits - float_path.logits).max() < 0.1 * scale
    again = run_recipe(recipe_with(PIXELS), out, "run")
    assert not again.made


def test_dtype_and_layout_go_together() -> None:
    assert InputTable(dtype="uint8", layout="NHWC").given() == {}
    with pytest.raises(UserError, match='layout "NHWC" does not go with dtype "float32"'):
        InputTable(layout="NHWC")
    with pytest.raises(UserError, match='dtype "uint" is not known') as caught:
        InputTable(dtype="uint")
    assert "uint8" in caught.value.hint
