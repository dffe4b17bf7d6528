"""The tables of the study of rewrites and settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from benchmarks.studies.ablation_speed_table import command

ROW = {
    "model": "m", "runtime": "openvino", "scenario": "offline", "setting": "constant batch",
    "speedup": 1.104, "low": 1.04, "high": 1.16, "on": False,
}  # fmt: skip


def kept(path: Path, *rows: dict[str, Any], claims: tuple[Any, ...] = ()) -> str:
    path.write_text(
        json.dumps({"study": "ablation_speed", "rows": rows, "claims": claims}), "utf-8"
    )
    return str(path)


def test_a_line_a_setting_and_a_column_a_runtime_and_scenario(tmp_path: Path) -> None:
    rows = [
        ROW | {"scenario": "single-stream", "speedup": 1.3, "low": 0.99, "high": 1.38},
        ROW,
        ROW | {"setting": "slow", "speedup": 0.5, "low": 0.4, "high": 0.6, "on": True},
        {"model": "m", "runtime": "openvino", "scenario": "offline", "setting": "Flatten",
         "status": "did not run", "reason": "it finds nothing to change in this file."},
        {"model": "m", "runtime": "onnxruntime", "status": "did not run", "reason": "no wheel"},
    ]  # fmt: skip
    claim = {"name": "slow: not slower", "value": 0.4, "target": ">= 0.98", "met": False}
    done = CliRunner().invoke(command, [kept(tmp_path / "a.json", *rows, claims=(claim,))])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [
        "### m",
        "",
        "|  | openvino, single-stream | openvino, offline |",
        "|---|---|---|",
        "| constant batch | 1.30x [0.99, 1.38] | **1.10x [1.04, 1.16]** |",
        "| slow |  | **0.50x [0.40, 0.60]**, on |",
        "| Flatten |  | as it is |",
        "",
        "- onnxruntime did not run: no wheel",
        "",
        "Claims not met:",
        "",
        "- slow: not slower: 0.4 (target >= 0.98)",
    ]


def test_one_model_twice_and_another_study_are_refused(tmp_path: Path) -> None:
    one, two = kept(tmp_path / "a.json", ROW), kept(tmp_path / "b.json", ROW)
    done = CliRunner().invoke(command, [one, two])
    assert done.exit_code == 2
    assert "two files hold m." in done.output
    other = tmp_path / "c.json"
    other.write_text('{"study": "growth", "rows": [], "claims": []}', "utf-8")
    done = CliRunner().invoke(command, [str(other)])
    assert done.exit_code == 7
    assert "is not what ablation_speed keeps" in done.output
