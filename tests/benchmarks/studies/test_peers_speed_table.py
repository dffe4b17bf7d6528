"""Kept results become Markdown tables."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from benchmarks.studies.peers_speed_table import command

LOAD = {"load": "3x3, OpenVINO", "unit": "things a second", "value": 4.2e12, "value_ci95": [4e12, 4.3e12]}  # fmt: skip
NO_LOAD = {"load": "1x1", "status": "did not run", "reason": "no torch"}
ROW = {
    "model": "resnet20", "scenario": "offline", "tool": "OpenVINO", "way": "INT8", "kind": "int8",
    "input": "float", "runs_in": "int8+bf16", "threads": 1, "streams": 2, "chunk": 32, "fixed_batch": True,
    "sqnr_db": 31.25, "p50_ms": 12.345, "p90_ms": 23.456, "images_per_s": 1234.5, "speedup": 9.876,
    "speedup_ci95": [9.5, 10.1], "query": 256,
}  # fmt: skip
BASE = ROW | {
    "tool": "onnxruntime", "way": "FP32", "kind": "fp32", "runs_in": "fp32", "sqnr_db": None,
    "speedup": 1.0, "speedup_ci95": [1.0, 1.0],
}  # fmt: skip
FAILED = {
    "model": "resnet20", "scenario": "offline", "tool": "torch", "way": "torch.compile",
    "kind": "fp32", "input": "float", "status": "did not run", "reason": "no | compiler",
}  # fmt: skip
ROOF = {
    "model": "resnet20", "scenario": "offline", "roofline": "deploy-tools int8", "weights": 270000,
    "multiply_adds": 41_000_000, "share_of_peak": 0.3, "share_of_peak_ci95": [0.28, 0.33],
    "compute_limit": 100000.0, "memory_limit": 2e6, "images_per_s": 30000.0, "peak_by": "3x3",
}  # fmt: skip
PHOTO = {
    "short_side": 375, "photos": 64, "layout": "one core", "scenario": "offline", "way": "ours",
    "agreement": 0.984375, "p50_ms": 40.0, "p90_ms": 44.0, "threads": 1, "streams": 2, "chunk": 8,
    "decoders": 1, "images_per_s": 200.0, "speedup": 3.5,
    "speedup_ci95": [3.25, 3.75], "query": 8,
}  # fmt: skip


def kept(path: Path, *rows: dict) -> str:
    claims = [
        {"name": "ours over theirs", "value": 0.95123, "target": ">= 0.98", "met": False},
        {"name": "fine", "value": 2.0, "target": ">= 1.5", "met": True},
        {"name": "nothing", "value": None, "target": ">= 1.5", "met": False},
    ]
    path.write_text(json.dumps({"study": "peers_speed", "rows": rows, "claims": claims}))
    return str(path)


def test_tables_of_models_and_photos(tmp_path: Path) -> None:
    files = [
        kept(tmp_path / "a.json", LOAD, NO_LOAD, BASE, ROW, FAILED, ROOF),
        kept(tmp_path / "b.json", LOAD, NO_LOAD, ROW | {"scenario": "single-stream"}),
        kept(tmp_path / "c.json", PHOTO | {"way": "theirs", "speedup_ci95": [1.0, 1.0]}, PHOTO),
    ]
    done = CliRunner().invoke(command, files)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    # Kept with each model, said once.
    assert lines.count(
        "- 3x3, OpenVINO: 4,200.0 [4,000.0, 4,300.0] x 10^9 things a second"
    ) == 1  # fmt: skip
    assert "- 1x1: did not run: no torch" in lines
    assert (
        "| OpenVINO | INT8 | float | int8+bf16 | 2 x 1, 32 fixed | 12.3 | 23.5 | 1,234 "
        "| 9.88x [9.50, 10.10] | 31.2 |"
    ) in lines
    assert (
        "| onnxruntime | FP32 | float | fp32 | 2 x 1, 32 fixed | 12.3 | 23.5 | 1,234 | 1x |  |"
        in lines
    )
    (failed,) = (line for line in lines if "torch.compile" in line)
    assert "did not run: no / compiler" in failed
    (roof,) = (line for line in lines if "% [28, 33] of" in line)
    assert roof.startswith("deploy-tools int8 reaches 30 %")
    assert "41 million" in roof
    assert lines.index("### resnet20, offline") < lines.index("### resnet20, single-stream")
    assert "| ours | 2 x 1, 8, 1 | 40 | 44 | 200 | 3.50x [3.25, 3.75] | 98.44 |" in lines
    assert "### JPEG to label, short side 375, one core, offline" in lines
    for title in ("### resnet20, offline", "### JPEG to label, short side 375, one core, offline"):
        at = lines.index(title) + 2
        width = lines[at].count("|")
        while at < len(lines) and lines[at].startswith("|"):
            assert lines[at].count("|") == width
            at += 1
    assert lines.count("- ours over theirs: 0.9512 (target >= 0.98)") == 3
    assert lines.count("- nothing: None (target >= 1.5)") == 3
    assert not any("fine" in line for line in lines)


def test_two_files_with_one_table_are_refused(tmp_path: Path) -> None:
    for rows, name in (((BASE, ROW), "resnet20, offline"), ((PHOTO,), "375, one core, offline")):
        files = [kept(tmp_path / "a.json", *rows), kept(tmp_path / "b.json", LOAD, rows[0])]
        done = CliRunner().invoke(command, files)
        assert done.exit_code == 2
        assert f"two files hold {name}" in done.output


def test_a_limit_that_nobody_keeps_is_said(tmp_path: Path) -> None:
    lost = {"images_per_s": None, "speedup": None, "speedup_ci95": None, "latency_limit_ms": 15.0}
    done = CliRunner().invoke(command, [kept(tmp_path / "a.json", ROW | lost)])
    assert "| 12.3 | 23.5 | none within 15 ms |  | 31.2 |" in done.stdout


def test_other_files_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    for text in ("[]", "{", '{"study": "growth", "rows": []}'):
        other.write_text(text)
        done = CliRunner().invoke(command, [str(other)])
        assert done.exit_code == 7
        assert "other.json" in done.output
