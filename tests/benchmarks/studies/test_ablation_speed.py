"""The study of rewrites and settings: every entry for real on the shipped model, and its rows."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
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
        opened = study._open_all(found, "m", "onnxruntime", subject, base, 2, stack)
        ready = dict(opened)
        assert found.rows == []  # nothing failed
        wanted = [s.name for s in SETTINGS if "onnxruntime" in s.runtimes]
        assert list(ready) == [study.PLAIN, study.BY_HOST, *wanted]
        for name, one in ready.items():
            assert one.same >= 0.9, name
            if one.setting is not None and one.setting.exact:
                assert one.change <= study.EXACT, name
            if name != study.BY_HOST and name != "constant batch":
                one.session.run(one.make(3))
        with pytest.raises(UserError):
            ready["constant batch"].session.run(ready["constant batch"].make(3))
    assert ready["the same file again"].change == 0
    assert ready["branches in float"].change > 0
    # One Transpose and one Pad where a QuantizeLinear was, and the pairs of the branches.
    assert ready["uint8 input, folded"].nodes == ready[study.PLAIN].nodes + 1
    assert ready["branches in float"].nodes < ready[study.PLAIN].nodes


def test_rows_and_claims_of_one_runtime(
    subject: Subject, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [s for s in SETTINGS if s.name in ("the same file again", "uint8 input, folded")]
    monkeypatch.setattr(study, "SETTINGS", [*chosen, Setting("broken", _broken)])
    monkeypatch.setattr(
        study, "_length",
        lambda quick, scenario, batch: SpeedConfig((scenario,), batch, 1, 0, 3, 0.0, 1),
    )  # fmt: skip
    found = results()
    study._runtime(found, "m", "onnxruntime", subject, 32)
    rows = {(row["setting"], row.get("scenario")): row for row in found.rows}
    assert set(rows) == {
        ("broken", None),
        *((setting.name, scenario) for setting in chosen for scenario in study.SCENARIOS),
    }
    assert rows["broken", None]["reason"].startswith("no such thing")
    for scenario in study.SCENARIOS:
        assert rows["the same file again", scenario]["over"] == study.PLAIN
        folded = rows["uint8 input, folded", scenario]
        assert folded["over"] == study.BY_HOST
        assert folded["on"]
        assert 0 < folded["low"] <= folded["speedup"] <= folded["high"]
    assert len(found.claims) == 4  # the copy is exact, the pixels are on: each in two scenarios


def _broken(base: Base, path: Path, batch: int) -> None:
    raise UserError("no such thing")


def test_the_host_normalizes_as_evaluation_does(subject: Subject, base: Base) -> None:
    session = open_session(base.int8, RuntimeConfig(threads=1))
    floats, pixels = study._Images(subject, False), study._Images(subject, True)
    assert pixels.all.dtype == np.uint8
    host = study._ByHost(session, subject.spec)
    found, wanted = host.run(pixels.batch(4))[0], session.run(floats.batch(4))[0]
    np.testing.assert_array_equal(found, wanted)


def test_settings_are_told_apart_and_on_where_they_are_measured() -> None:
    assert len({setting.name for setting in SETTINGS}) == len(SETTINGS)
    for setting in SETTINGS:
        assert set(setting.on) <= set(setting.runtimes) <= set(TARGETS), setting.name


def test_an_unknown_model_is_refused_with_the_nearest(tmp_path: Path) -> None:
    done = CliRunner().invoke(study.command, ["--data", str(tmp_path), "--model", "resnet5"])
    assert done.exit_code == 2
    assert 'Did you mean "resnet50"?' in done.output
