"""The study itself: models, shares of the peak, and one small real run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from benchmarks.speed import SpeedConfig
from benchmarks.statistics import Interval
from benchmarks.studies import machine_peak
from benchmarks.studies import peers_speed as study
from benchmarks.studies.base import Results, run_study
from benchmarks.studies.machine_peak import Peak
from benchmarks.studies.multiply_adds import Work
from benchmarks.studies.speed_rows import BASELINE, US
from benchmarks.studies.speed_rows import rows as all_rows
from benchmarks.studies.subject import Data, shipped_case
from deploy_tools.errors import UserError

TINY = SpeedConfig(warmup=1, settle=0, rounds=3, seconds_per_round=0.0, min_calls=1)


def test_models_by_name(tmp_path: Path) -> None:
    names = [case.name for case in study.chosen_cases(tmp_path, ())]
    assert names == ["resnet50-random", "resnet18-flowers", "resnet20"]
    assert [c.name for c in study.chosen_cases(tmp_path, ("resnet18-flowers",))] == names[1:2]
    with pytest.raises(UserError, match="resnet50-random"):
        study.chosen_cases(tmp_path, ("resnet50-randon",))


def test_small_images_make_large_queries(tmp_path: Path) -> None:
    large, _, small = study.chosen_cases(tmp_path, ())
    assert study.plan_of(small, True).query == 256
    assert study.plan_of(large, False).query == 64
    assert study.plan_of(large, False).final.rounds > study.plan_of(large, True).final.rounds
    plan = study.plan_of(large, False, 50.0)
    assert {c.server.latency_limit_ms for c in (plan.final, plan.search, plan.duel)} == {50.0}


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

    def peaks(results):
        results.row(load="some load", unit="things", value=1e12, value_ci95=[0.9e12, 1.1e12])
        return study.Peaks(peak, peak)

    monkeypatch.setattr(study, "_peaks", peaks)
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
    assert len(names) == 6
    assert sum("over the best of the others" in name for name in names) == 2
    assert sum("logit SQNR" in name for name in names) == 2
    kept = [
        json.loads((tmp_path / f"peers_speed-{name}-quick.json").read_text("utf-8"))
        for name in ("roofline", f"{case.name}-single-stream", f"{case.name}-offline")
    ]
    assert [row for file in kept for row in file["rows"]] == values["rows"]
    assert [file["command"].partition(" --data DIR ")[2] for file in kept] == [
        "--part roofline --quick",
        f"--model {case.name} --part speed --scenario single-stream --part roofline --quick",
        f"--model {case.name} --part speed --scenario offline --part roofline --quick",
    ]
    assert all(file["tools"]["onnxruntime"] for file in kept)


def test_parts_never_have_one_name() -> None:
    parts = [
        study._speed_part(model, scenario, peaks, limit)
        for model in ("resnet20", "resnet18-flowers")
        for scenario in ("offline", "server")
        for peaks in (True, False)
        for limit in (15.0, 50.0)
        if scenario == "server" or limit == 15.0
    ]
    assert len({name for name, _ in parts}) == len({options for _, options in parts}) == len(parts)
    assert study._speed_part("m", "server", False, 50.0) == (
        "m-server-50ms-no-roofline",
        "--model m --part speed --scenario server --latency-limit 50",
    )


def test_a_scenario_without_its_baseline_is_a_row_and_ends_nothing(monkeypatch) -> None:
    def measure(self, rows, scenario, best):
        raise UserError("the baseline does not run: no memory")

    monkeypatch.setattr(study.Bench, "measure", measure)
    results = Results(True, lambda line: None)
    study.one_scenario(results, "m", study.Bench(None, None, None), "offline", None)  # type: ignore[arg-type]
    (row,) = results.rows
    assert (row["model"], row["scenario"], row["reason"]) == (
        "m", "offline", "the baseline does not run: no memory",
    )  # fmt: skip
    assert [claim.met for claim in results.claims] == [False, False]


def test_the_roofline_alone_is_measured_and_kept(monkeypatch, tmp_path: Path) -> None:
    """`_peaks` through the command, with small loads."""
    monkeypatch.setattr(study, "peak_config", lambda quick: replace(TINY, scenarios=("offline",)))
    monkeypatch.setattr(machine_peak, "_SHAPES", {"1x1 convolutions": (16, 4, 1)})
    monkeypatch.setattr(machine_peak, "_LAYERS", 1)
    monkeypatch.setattr(machine_peak, "_MATRIX", 32)
    monkeypatch.setattr(machine_peak, "copy_size", lambda: 1 << 20)
    arguments = ["--data", str(tmp_path), "--part", "roofline", "--keep", str(tmp_path)]
    command = run_study("peers_speed", study.study, study._OPTIONS)
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    (file,) = tmp_path.iterdir()
    assert file.name == "peers_speed-roofline.json"
    rows = json.loads(file.read_text("utf-8"))["rows"]
    assert sum("value" in row for row in rows) >= 4
    assert {row["unit"] for row in rows if "value" in row} == {
        "INT8 multiply-adds a second", "bytes a second",
    }  # fmt: skip


def test_the_photos_alone_through_the_command(monkeypatch, tmp_path: Path) -> None:
    """One file for each size, and no other model is even prepared."""
    prepared, sides = [], []

    def prepare(folder, case, data, quick):
        prepared.append(case.name)
        return None, SimpleNamespace(test=None)

    def compare(results, files, photos, final, search):
        sides.append(photos)
        results.row(short_side=photos, layout="one core", scenario="offline", way="ours")

    monkeypatch.setattr(study, "_prepare", prepare)
    monkeypatch.setattr(study, "find_photos", lambda data, files, folder, count, side: side)
    monkeypatch.setattr(study, "compare_jpeg", compare)
    command = run_study("peers_speed", study.study, study._OPTIONS)
    arguments = ["--data", str(tmp_path), "--part", "jpeg", "--keep", str(tmp_path)]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    assert prepared == [study.JPEG]
    assert sides == [232, 375]
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["peers_speed-jpeg-232.json", "peers_speed-jpeg-375.json"]
