import numpy as np
import onnx
import pytest

from benchmarks.memory import _rebuilt, peak_rss_of_model
from benchmarks.memory_worker import peak_rss
from deploy_tools.errors import MissingDependencyError, UserError
from deploy_tools.runtimes import RuntimeConfig

SHAPE = (1, 1, 8, 8)


def test_a_big_parent_does_not_inflate_the_figure(tiny):
    """Linux hands ru_maxrss from a parent to its children through fork and exec."""
    plain = peak_rss_of_model(tiny, RuntimeConfig(threads=1), SHAPE)
    ballast = np.ones(500_000_000 // 8)  # 500 MB, really touched
    assert peak_rss() > ballast.nbytes
    beside = peak_rss_of_model(tiny, RuntimeConfig(threads=1), SHAPE)
    assert 20e6 < plain < 600e6
    assert abs(beside - plain) < 100e6


def test_a_bigger_batch_needs_more_memory(tiny):
    small = peak_rss_of_model(tiny, RuntimeConfig(threads=1), SHAPE)
    images = 400_000  # 102 MB of input alone
    big = peak_rss_of_model(tiny, RuntimeConfig(threads=1), (images, 1, 8, 8), calls=1)
    assert big - small > 100e6


def test_errors_of_the_process_come_back(tiny, tmp_path):
    with pytest.raises(UserError, match="does not exist") as caught:
        peak_rss_of_model(tmp_path / "none.onnx", RuntimeConfig(), SHAPE)
    assert "died" not in caught.value.message
    with pytest.raises(UserError) as caught:
        peak_rss_of_model(tiny, RuntimeConfig(precision="bf16"), SHAPE)
    assert "openvino" in caught.value.hint
    with pytest.raises(UserError, match=r"cannot run inputs of shape \(1, 3, 8, 8\)"):
        peak_rss_of_model(tiny, RuntimeConfig(), (1, 3, 8, 8))
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(UserError, match=r"text\.onnx"):
        peak_rss_of_model(tmp_path / "text.onnx", RuntimeConfig(), SHAPE)


def test_an_error_keeps_its_class_and_exit_code():
    answer = {"error": "MissingDependencyError", "message": "no runtime.", "hint": "Install it."}
    error = _rebuilt(answer)
    assert (type(error), error.exit_code) == (MissingDependencyError, 3)
    assert str(error) == "no runtime. Install it."
    assert type(_rebuilt({"error": "require"})) is UserError


def test_a_process_that_dies_or_hangs_is_reported(tiny, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(UserError, match="died"):
        peak_rss_of_model(tiny, RuntimeConfig(), SHAPE)
    monkeypatch.delenv("PYTHONHOME")
    with pytest.raises(UserError, match="took over"):
        peak_rss_of_model(tiny, RuntimeConfig(), SHAPE, timeout_s=0.01)


def test_the_model_of_the_fixture_is_valid(tiny):
    onnx.checker.check_model(onnx.load(tiny), full_check=True)
