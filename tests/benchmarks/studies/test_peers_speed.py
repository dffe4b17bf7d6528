"""The study itself: models, shares of the peak, and one small real run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.speed import SpeedConfig
from benchmarks.statistics import Interval
from benchmarks.studies import peers_speed as study
from benchmarks.studies.base import run_study
from benchmarks.studies.machine_peak import Peak
from benchmarks.studies.multiply_adds import Work
from benchmarks.studies.speed_rows import BASELINE, US
from benchmarks.studies.speed_rows import rows as all_rows
from benchmarks.studies.subject import Data, shipped_case
from deploy_tools.errors import UserError

TINY = SpeedConfig(warmup=1, settle=0, rounds=3, seconds_per_round=0.0, min_calls=1)


def test_models_by_name(tmp_path: Path) -> None:
    names = [case.name for case in study.chosen_cases(tmp_path, ())]
    assert names == ["resnet20", "resnet18-flowers", "resnet50-random"]
    assert [c.name for c in study.chosen_cases(tmp_path, ("resnet18-flowers",))] == names[1:2]
    with pytest.raises(UserError, match="resnet50-random"):
        study.chosen_cases(tmp_path, ("resnet50-randon",))


def test_small_images_make_large_queries(tmp_path: Path) -> None:
    small, large, _ = study.chosen_cases(tmp_path, ())
    assert study.plan_of(small, True).query == 256
    assert study.plan_of(large, False).query == 64
    assert study.plan_of(large, False).final.rounds > study.plan_of(large, True).final.rounds


def test_the_share_of_the_peak_is_as_wide_as_both() -> None:
    share = study.share_of_peak(
        Interval(300.0, 290.0, 310.0), Work(4_000_000, 0, 0), Interval(4e9, 3.9e9, 4.1e9)
    )
    assert share.estimate == pytest.approx(0.3)
    assert share.low == pytest.approx(290 * 4e6 / 4.1e9)
    assert share.high == pytest.approx(310 * 4e6 / 3.9e9)


def test_the_real_thing_small(monkeypatch, tmp_path: Path, fashion_train) -> None:
    """The shipped ResNet-20: onnxruntime's own INT8, a tool that fails, torch, and ours."""
    case = replace(shipped_case(), data=Data("fashion-mnist", None), images=32)
    wanted = (
        BASELINE, "onnxruntime INT8, U8S8 per channel", "torch eager",
        f"{US} int8-static-ort", f"{US} int8-static-ort, uint8 input",
    )  # fmt: skip
    kept = [row for row in all_rows() if row.name in wanted]
    kept.append(replace(kept[-1], tool="broken", way="tool", file="nowhere", pixels=False))
    peak = Peak(Interval(1e12, 0.9e12, 1.1e12), "some load")
    monkeypatch.setattr(study, "cases", lambda data: (case, case, case))
    monkeypatch.setattr(study, "rows", lambda: tuple(kept))
    monkeypatch.setattr(study, "_QUICK", TINY)
    monkeypatch.setattr(study, "_QUICK_SEARCH", TINY)
    monkeypatch.setattr(study, "_peaks", lambda results: study.Peaks(peak, peak))
    command = run_study("peers_speed", study.study, study._OPTIONS)
    arguments = ["--data", str(tmp_path), "--quick", "--json", "--keep", str(tmp_path)]
    arguments += ["--model", case.name, "--part", "speed", "--part", "roofline"]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout.splitlines()[-1])
    rows = [row for row in values["rows"] if "tool" in row]
    assert len(rows) == 2 * len(kept)
    for row in rows:
        if row["tool"] == "broken":
            assert row["reason"]
            continue
        assert row["images_per_s"] > 0, row
        low, high = row["speedup_ci95"]
        assert low <= row["speedup"] <= high
        assert len(row["rounds_images_per_s"]) == 3
        if row["way"] != "FP32":
            # Each computes the model, on the images as it takes them.
            assert row["sqnr_db"] > (80 if row["kind"] == "fp32" else 20)
    roofs = [row for row in values["rows"] if "roofline" in row]
    assert [row["scenario"] for row in roofs] == ["single-stream", "offline"]
    for roof in roofs:
        assert US in roof["roofline"]
        share = roof["images_per_s"] * roof["multiply_adds"] / 1e12
        assert roof["share_of_peak"] == pytest.approx(share)
    names = [claim["name"] for claim in values["claims"]]
    assert len(names) == 4
    assert sum("over the best of the others" in name for name in names) == 2
    file = json.loads((tmp_path / f"peers_speed-{case.name}-part.json").read_text("utf-8"))
    assert file["rows"] == values["rows"]
    assert file["command"].startswith("python -m benchmarks.studies.peers_speed --data DIR")
    assert file["tools"]["onnxruntime"]
