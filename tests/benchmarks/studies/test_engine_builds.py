"""The study of engine builds, quickly and for real, and its kept result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.studies import engine_builds as study

KEPT = Path(__file__).resolve().parents[3] / "benchmarks" / "results" / "engine_builds.json"


def test_quick(shared_data: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    done = CliRunner().invoke(study.command, ["--data", str(shared_data), "--quick", "--json"])
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout.splitlines()[-1])
    rows = {row["file"]: row for row in values["rows"]}
    assert {kind: row["runs_in"] for kind, row in rows.items()} == {
        "fp32": "fp32", "fp16": "fp16", "int8": "int8+fp16",
    }  # fmt: skip
    assert [row["int8_layers"] for row in rows.values()] == [0, 0, 20]
    for row in rows.values():
        assert row["builds"] == 2
        assert 0 < row["seconds_min"] <= row["seconds"] <= row["seconds_max"]
    (claim,) = values["claims"]
    assert claim["met"]
    assert "of 20" in claim["name"]


def test_the_kept_run_is_a_full_one() -> None:
    kept = json.loads(KEPT.read_text("utf-8"))
    models = {row["model"].partition(",")[0] for row in kept["rows"]}
    assert models == {"resnet20-cifar-a", "resnet18", "resnet34", "resnet50"}
    assert len(kept["rows"]) == 12
    assert len(kept["claims"]) == 4
    assert {row["builds"] for row in kept["rows"]} == {study.BUILDS}
    for claim in kept["claims"]:
        assert claim["met"] == (claim["value"] >= int(claim["target"].split()[-1]))
