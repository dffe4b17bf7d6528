from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from calibration.augment import graph_input, with_outputs
from deploy_tools.errors import UserError
from deploy_tools.runtimes import RuntimeConfig, open_session


def test_wanted_tensors_become_the_only_outputs(model: Path):
    session = open_session(with_outputs(model, ["deep", "relu"]), RuntimeConfig(threads=1))
    assert session.output_names == ("deep", "relu")
    deep, relu = session.run(np.ones((3, 1, 8, 8), np.float32))
    assert deep.shape == (3, 2, 4, 4)
    assert relu.min() == 0.0


def test_input_and_its_batch(model: Path, small_model):
    assert graph_input(model) == ("input", None)
    assert graph_input(small_model(batch=4)) == ("input", 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rellu", 'no tensor "rellu".*Did you mean "relu"'),
        ("w1", '"w1".*is a weight'),
        ("shape", 'tensor "shape".*INT64'),
    ],
)
def test_names_without_ranges_are_refused(model: Path, name, message):
    with pytest.raises(UserError, match=message):
        with_outputs(model, [name])


def test_files_that_are_no_models(tmp_path: Path):
    with pytest.raises(UserError, match="does not exist"):
        graph_input(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"\x08not a model")
    with pytest.raises(UserError, match="cannot be read as an ONNX file"):
        graph_input(tmp_path / "bad.onnx")


def test_two_inputs_are_refused(model: Path, tmp_path: Path):
    proto = onnx.load(str(model))
    proto.graph.input.append(onnx.helper.make_tensor_value_info("mask", 1, [1]))
    onnx.save(proto, str(tmp_path / "two.onnx"))
    with pytest.raises(UserError, match="has 2 inputs"):
        graph_input(tmp_path / "two.onnx")
