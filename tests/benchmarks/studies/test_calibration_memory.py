from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from benchmarks.studies import calibration_memory as study
from benchmarks.studies.base import Results, run_study
from deploy_tools.errors import UserError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for cls in ("a", "b"):
        folder = tmp_path / "photos" / "train" / cls
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (240, 250, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(1).normal(size=(2, 3, 7, 7)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input", "w"], ["conv"], strides=[8, 8]),
            helper.make_node("Relu", ["conv"], ["relu"]),
            helper.make_node("GlobalAveragePool", ["relu"], ["logits"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2, 1, 1])],
        [numpy_helper.from_array(weights, "w")],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_our_measurement_in_a_fresh_process(model, photos):
    found = study._run(study.Task("ours", "entropy", 4, str(model), str(photos), True), study.GIB)
    assert found["reads_per_image"] == 1
    assert found["tensors"] == 2
    assert found["ratio"] == pytest.approx(found["calibration_s"] / found["inference_s"])
    assert 50e6 < found["peak_rss_bytes"] < study.GIB
    assert 0.0 <= found["other_load"] <= 1.0


def test_their_measurement_in_a_fresh_process(model, photos):
    found = study._run(
        study.Task("onnxruntime", "percentile", 4, str(model), str(photos)), study.GIB
    )
    assert found["tensors"] >= 2
    assert found["peak_rss_bytes"] > 50e6


def test_process_over_the_limit_is_ended(model, photos):
    found = study._run(study.Task("ours", "entropy", 4, str(model), str(photos)), 20 << 20)
    assert found["stopped"].startswith("over 0.02")
    assert found["peak_rss_bytes"] > 20 << 20


def test_failing_process_gives_its_last_line(model, tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        study._run(study.Task("ours", "entropy", 4, str(model), str(tmp_path / "none")), study.GIB)


def test_claims_follow_from_the_rows(monkeypatch, photos):
    answers = {
        "ours": {"peak_rss_bytes": 3 * study.GIB, "reads_per_image": 2.0, "ratio": 3.5},
        "onnxruntime": {"peak_rss_bytes": 8 * study.GIB, "stopped": "over 8 GiB"},
    }
    asked: list[study.Task] = []

    def run(task: study.Task, limit: int):
        asked.append(task)
        return answers[task.kind]

    monkeypatch.setattr(study, "_run", run)
    monkeypatch.setattr(study, "_write_model", lambda depth, path: None)
    monkeypatch.setattr(study, "photo_folder", lambda _: photos)
    done = CliRunner().invoke(run_study("calibration_memory", study.main), ["--json"])
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout.splitlines()[-1])
    assert len(values["claims"]) == 6
    assert not any(claim["met"] for claim in values["claims"])
    assert values["rows"][0]["peak_gib"] == 3.0
    # Their row of one image count over the limit ends the series of that method.
    assert [t.images for t in asked if t.kind == "onnxruntime"] == [16, 16]
    answers["ours"] = {"peak_rss_bytes": study.GIB, "reads_per_image": 1.0, "ratio": 2.5}
    results = Results(True, lambda line: None)
    study.main(results)
    assert all(claim.met for claim in results.claims)


def test_photos_are_found_or_asked_for(monkeypatch, tmp_path, photos):
    monkeypatch.setenv("DEPLOY_TOOLS_PHOTOS", str(photos))
    assert study.photo_folder() == photos
    monkeypatch.setenv("DEPLOY_TOOLS_PHOTOS", str(tmp_path / "none"))
    with pytest.raises(UserError, match="DEPLOY_TOOLS_PHOTOS"):
        study.photo_folder()


def test_load_of_other_processes_leaves_out_ones_own():
    with study._OtherLoad() as other:
        ended = time.process_time() + 0.3
        while time.process_time() < ended:
            pass
    assert other.share is not None
    assert other.share < 1.0
    assert sys.platform == "linux"
