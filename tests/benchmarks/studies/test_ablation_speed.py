"""The study of rewrites and settings: every entry for real on the shipped model, and its rows."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from benchmarks.speed import SpeedConfig
from benchmarks.studies import ablation_speed as study
from benchmarks.studies.base import Results
from benchmarks.studies.speed_settings import SETTINGS, TARGETS, Base, Setting
from benchmarks.studies.subject import Subject, prepare_subject, shipped_case
from deploy_tools.errors import UserError
from deploy_tools.recipe import ModelTable
from deploy_tools.runtimes import RuntimeConfig, open_session
from deploy_tools.runtimes.fixed_batch import FixedBatchSession


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    case = shipped_case()
    table = ModelTable(case.arch, case.checkpoint, num_classes=case.num_classes)
    folder = tmp_path_factory.mktemp("subject")
    return prepare_subject(folder, table, case.given, case.data, tuple(range(32)))


@pytest.fixture(scope="module")
def base(subject: Subject) -> Base:
    return study._base(subject, "ort-cpu", 32)


def results() -> Results:
    return Results(quick=True, say=lambda _: None)


def test_every_setting_makes_a_file_that_runs_and_exact_ones_mean_the_same(
    subject: Subject, base: Base
) -> None:
    found = results()
    with ExitStack() as stack:
        where = {"model": "m", "runtime": "onnxruntime", "scenario": "offline"}
        ready = dict(study._open_all(found, where, subject, base, 2, stack))
        # Of each pair of forms the file has one already; nothing else failed.
        assert {row["reason"] for row in found.rows} == {study.NOTHING}
        same = {row["setting"] for row in found.rows}
        assert same < {"GlobalAveragePool", "ReduceMean", "Flatten", "Reshape", "no repeated pairs"}
        wanted = [s.name for s in SETTINGS if "onnxruntime" in s.runtimes and s.name not in same]
        assert list(ready) == [study.PLAIN, study.BY_HOST, *wanted]
        for name, one in ready.items():
            assert one.same >= 0.9, name
            if one.setting is not None and one.setting.exact:
                assert one.change <= study.EXACT, name
            if name != study.BY_HOST:
                one.session.run(one.make(3))
        constant = ready["constant batch"].session
        assert isinstance(constant, FixedBatchSession)
        assert constant.batch == 2
    assert ready["the same file again"].change == 0
    assert ready["branches in float"].change > 0
    # One Transpose and one Pad where a QuantizeLinear was, and the pairs of the branches.
    assert ready["uint8 input, folded"].nodes == ready[study.PLAIN].nodes + 1
    assert ready["branches in float"].nodes < ready[study.PLAIN].nodes


def test_rows_and_claims_of_one_runtime(
    subject: Subject, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [s for s in SETTINGS if s.name in ("the same file again", "uint8 input, folded")]
    monkeypatch.setattr(study, "SETTINGS", [*chosen, *BROKEN.values()])
    monkeypatch.setattr(
        study, "_length",
        lambda quick, scenario, batch: SpeedConfig((scenario,), batch, 1, 0, 3, 0.0, 1),
    )  # fmt: skip
    found = results()
    study._runtime(found, "m", "onnxruntime", subject, 32)
    rows = {(row["setting"], row.get("scenario")): row for row in found.rows}
    assert set(rows) == {
        *((name, scenario) for name in BROKEN for scenario in study.SCENARIOS),
        *((setting.name, scenario) for setting in chosen for scenario in study.SCENARIOS),
    }
    for scenario in study.SCENARIOS:
        assert rows["broken", scenario]["reason"] == "no such thing"
        assert "ValidationError" in rows["invalid", scenario]["reason"]
        assert rows["idle", scenario]["reason"] == study.NOTHING
        assert rows["the same file again", scenario]["over"] == study.PLAIN
        folded = rows["uint8 input, folded", scenario]
        assert folded["over"] == study.BY_HOST
        assert folded["on"]
        assert 0 < folded["low"] <= folded["speedup"] <= folded["high"]
    assert len(found.claims) == 4  # the copy is exact, the pixels are on: each in two scenarios


def _broken(base: Base, path: Path, batch: int) -> None:
    raise UserError("no such thing")


def _invalid(base: Base, path: Path, batch: int) -> None:
    onnx.checker.check_model(onnx.ModelProto())


BROKEN = {
    "broken": Setting("broken", _broken),
    "invalid": Setting("invalid", _invalid),
    "idle": Setting("idle", SETTINGS[0].make),
}


def test_main_measures_the_shipped_model_and_goes_on_behind_what_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fashion_train
) -> None:
    case = shipped_case()
    lost = replace(case, name="lost", checkpoint=str(tmp_path / "none.safetensors"))
    monkeypatch.setattr(study, "cases", lambda data: (case,))
    monkeypatch.setattr(study, "random_case", lambda data: lost)
    monkeypatch.setattr(study, "TARGETS", {"onnxruntime": "ort-cpu"})
    monkeypatch.setattr(study, "SETTINGS", SETTINGS[:1])
    monkeypatch.setattr(
        study, "_length", lambda *rest: SpeedConfig((rest[1],), rest[2], 1, 0, 3, 0.0, 1)
    )
    out = tmp_path / "ablation.json"
    arguments = ["--data", str(tmp_path), "--quick", "--json", "-o", str(out)]
    arguments += ["--model", "lost", "--model", case.name]
    done = CliRunner().invoke(study.command, arguments)
    assert done.exit_code == 0, done.output
    first, *rest = json.loads(out.read_text("utf-8"))["rows"]
    assert (first["model"], first["status"]) == ("lost", "did not run")
    assert [(row["setting"], row["scenario"]) for row in rest] == [
        (SETTINGS[0].name, scenario) for scenario in study.SCENARIOS
    ]
    assert all(row["change"] == 0 for row in rest)
    done = CliRunner().invoke(study.command, ["--data", str(tmp_path), "--model", "lost"])
    assert done.exit_code == 2
    assert "nothing ran: UserError: checkpoint none.safetensors" in done.output


def test_judged_images_are_spread_over_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(study, "prepare_subject", lambda *rest: seen.append(rest[-1]))
    monkeypatch.setattr(study, "open_source", lambda *rest: range(640))
    study._subject(tmp_path, tmp_path, shipped_case(), True)
    assert seen == [tuple(range(0, 640, 10))]


def test_the_host_normalizes_as_evaluation_does(subject: Subject, base: Base) -> None:
    session = open_session(base.int8, RuntimeConfig(threads=1))
    floats, pixels = study._Images(subject, False), study._Images(subject, True)
    assert pixels.all.dtype == np.uint8
    host = study._ByHost(session, subject.spec)
    found, wanted = host.run(pixels.batch(4))[0], session.run(floats.batch(4))[0]
    np.testing.assert_array_equal(found, wanted)


def test_settings_are_told_apart_and_on_where_they_are_measured() -> None:
    assert len({setting.name for setting in SETTINGS}) == len(SETTINGS)
    # What a runtime's plain file has already would be compared with itself.
    assert {s.name: s.runtimes for s in SETTINGS if s.name.startswith("branches")} == {
        "branches in float": ("onnxruntime",), "branches quantized": ("openvino",),
    }  # fmt: skip
    for setting in SETTINGS:
        assert set(setting.on) <= set(setting.runtimes) <= set(TARGETS), setting.name


def test_an_unknown_model_is_refused_with_the_nearest(tmp_path: Path) -> None:
    done = CliRunner().invoke(study.command, ["--data", str(tmp_path), "--model", "resnet50-rand"])
    assert done.exit_code == 2
    assert 'Did you mean "resnet50-random"?' in done.output
