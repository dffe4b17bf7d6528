"""Kept results become one Markdown table."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from benchmarks.studies.peers_table import command

ROW = {
    "model": "resnet20", "setting": "default", "tool": "onnxruntime", "method": "MinMax",
    "runtime": "onnxruntime", "seeds": 5, "top1": 0.9171, "drop_pp": 0.02, "drop_low_pp": -0.1,
    "drop_high_pp": 0.14, "agreement": 0.992, "agreement_min": 0.991, "agreement_max": 0.993,
    "sqnr_db": 29.96, "sqnr_db_min": 29.81, "sqnr_db_max": 30.15, "cpu_seconds": 1.25,
    "peak_rss_bytes": 148_000_000, "file_bytes": 320_000, "whole": True,
}  # fmt: skip
FAILED = {
    "model": "resnet20", "setting": "S8S8", "tool": "modelopt", "method": "max",
    "runtime": "openvino", "status": "did not run", "reason": "no | environment.",
}  # fmt: skip


def kept(path: Path, model: str, *rows: dict) -> Path:
    fp32 = {"model": model, "tool": "fp32", "images": 10000, "correct": 9173}
    claims = [
        {"name": "a lead, dB", "value": -0.51234, "target": ">= 1.5", "met": False},
        {"name": "another", "value": 2.0, "target": ">= 1.5", "met": True},
    ]
    rows = tuple(row | {"model": model} for row in rows)
    path.write_text(
        json.dumps({"study": "peers_accuracy", "rows": [fp32, *rows], "claims": claims})
    )
    return path


def test_a_table_of_two_models(tmp_path):
    files = [
        kept(tmp_path / "a.json", "resnet20", ROW, FAILED),
        kept(tmp_path / "b.json", "resnet32", ROW | {"seeds": 1}),
    ]
    done = CliRunner().invoke(command, [str(file) for file in files])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert "FP32 is right on 9,173 of 10,000 images." in lines
    assert (
        "| default | onnxruntime | MinMax | onnxruntime | 91.71 | +0.02 [-0.10, +0.14] "
        "| 99.20 (99.10 to 99.30) | 29.96 (29.81 to 30.15) | 1.2 | 148 | 0.32 |"
    ) in lines
    (failed,) = (line for line in lines if "modelopt" in line)
    assert "did not run: no / environment." in failed
    rows = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in rows} == {12}
    assert lines.index("### resnet20") < lines.index("### resnet32")
    assert any("| 99.20 | 29.96 |" in line for line in lines)
    assert lines.count("- a lead, dB: -0.5123 (target >= 1.5)") == 2
    assert not any("another" in line for line in lines)


def test_the_best_rows_alone(tmp_path):
    ours = ROW | {"tool": "deploy-tools", "method": "default", "sqnr_db": 20.0}
    rows = (
        ours,
        ours | {"method": "plain minmax", "sqnr_db": 40.0},
        ours | {"runtime": "openvino"},
        ROW | {"setting": "32 images", "method": "few"},
        ROW,
        ROW | {"method": "Percentile", "runtime": "openvino", "sqnr_db": 31.0},
        ROW | {"method": "in float", "sqnr_db": 50.0, "whole": False},
        FAILED,
    )
    path = kept(tmp_path / "a.json", "resnet20", *rows)
    done = CliRunner().invoke(command, ["--best", str(path)])
    assert done.exit_code == 0, done.output
    shown = [
        [cell.strip() for cell in line.split("|")[1:5]]
        for line in done.stdout.splitlines()
        if line.startswith(("| default", "| 32", "| S8S8"))
    ]
    assert shown == [
        ["default", "deploy-tools", "default", "onnxruntime"],
        ["default", "deploy-tools", "default", "openvino"],
        ["default", "onnxruntime", "Percentile", "openvino"],
        ["32 images", "onnxruntime", "few", "onnxruntime"],
    ]


def test_other_files_are_refused(tmp_path):
    other = tmp_path / "other.json"
    other.write_text('{"rows": [{"tool": "fp32"}]}')
    listed, empty = tmp_path / "list.json", tmp_path / "empty.json"
    listed.write_text("[]")
    empty.write_text('{"study": "peers_accuracy"}')
    wrong = [(path, "is not what") for path in (other, listed, empty)]
    for path, reason in (*wrong, (tmp_path / "none.json", "cannot be read")):
        done = CliRunner().invoke(command, [str(path)])
        assert done.exit_code == 7
        assert reason in done.stderr
