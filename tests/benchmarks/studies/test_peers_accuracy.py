"""The table of all tools: every row is there, whatever its tool does, and claims are honest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from benchmarks.peers.base import PeerFile
from benchmarks.studies import peers_accuracy as study
from benchmarks.studies.base import Results, run_study
from benchmarks.studies.ours import DEFAULT, FREE
from benchmarks.studies.peers_claims import Found, claim_all
from benchmarks.studies.peers_resume import DoneRows
from benchmarks.studies.peers_rows import FEW, HARD, PLAIN, S8S8, Row
from benchmarks.studies.subject import Case, cases, mean_sqnr, spread
from deploy_tools.errors import MissingDependencyError, UserError
from deploy_tools.recipe import InputTable


def accuracy(sqnr: float, drop: float = 0.1, agreement: float = 0.99) -> SimpleNamespace:
    return SimpleNamespace(
        logit_sqnr_db=sqnr, agreement=agreement, drop_pp=drop, mcnemar_p=0.5, top1=0.9,
        drop_ci95_pp=(drop - 0.2, drop + 0.4),
    )  # fmt: skip


CASE = Case("some", "arch", "file", 10, InputTable(), None, 100)  # type: ignore[arg-type]
OURS = Row("deploy-tools", DEFAULT, "ours", {}, ("onnxruntime",))
NOTHING = DoneRows(None, {})
PEER = Row("tool", "best", "peer", {}, ("onnxruntime", "openvino"))


class Subject:
    """Remembers what was drawn; each file's accuracy is made up from its seed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.drawn: list[tuple[int, int]] = []
        self.baseline = SimpleNamespace(correct=SimpleNamespace(sum=lambda: 91))

    def select(self, count, seed):
        self.drawn.append((count, seed))
        return seed

    def job(self, selection, held_out):
        return selection

    def judge_session(self, session):
        return accuracy(session)


@pytest.fixture
def subject(tmp_path, monkeypatch):
    def measure(adapter, job, path, options, python):
        if adapter == "missing":
            raise MissingDependencyError("the tool needs x.", "Install it.")
        path.write_text(str(job))
        return PeerFile(path, 1.0 + job, 2.0 * job, 100 * (job + 1), 7)

    def open_peer(path, runtime):
        if runtime == "broken":
            raise RuntimeError("/a/b/c.cpp says no")
        return 30.0 + float(path.read_text()) + (runtime == "openvino")

    monkeypatch.setattr(study, "measure", measure)
    monkeypatch.setattr(study, "open_peer", open_peer)
    return Subject(tmp_path)


def test_a_row_is_the_mean_over_its_seeds(subject):
    one, two = study.run_row(PEER, CASE, subject, 3)
    assert subject.drawn == [(100, 0), (100, 1), (100, 2)]
    values = study.values_of(one)
    assert (values["tool"], values["runtime"], values["seeds"]) == ("tool", "onnxruntime", 3)
    assert values["sqnr_db_by_seed"] == [30.0, 31.0, 32.0]
    assert (values["sqnr_db"], values["sqnr_db_min"], values["sqnr_db_max"]) == (31.0, 30.0, 32.0)
    assert (values["seconds"], values["cpu_seconds"]) == (2.0, 2.0)
    assert (values["peak_rss_bytes"], values["file_bytes"]) == (300, 7)
    assert values["drop_low_pp"] == pytest.approx(-0.1)
    assert values["drop_high_pp"] == pytest.approx(0.5)
    assert "status" not in values
    assert study.values_of(two)["sqnr_db"] == 32.0


def test_few_images_are_few(subject):
    study.run_row(replace(PEER, setting=FEW), CASE, subject, 1)
    assert subject.drawn == [(32, 0)]


def test_a_tool_that_does_not_run_has_a_row_with_the_reason(subject):
    one, two = study.run_row(replace(PEER, adapter="missing"), CASE, subject, 5)
    for found in (one, two):
        assert study.values_of(found) == {
            "setting": PLAIN, "tool": "tool", "method": "best", "runtime": found.runtime,
            "status": "did not run", "reason": "the tool needs x. Install it.",
        }  # fmt: skip
    # It is not tried five times.
    assert len(subject.drawn) == 1


def test_a_runtime_that_refuses_spoils_only_its_own_row(subject):
    row = replace(PEER, runtimes=("broken", "openvino"))
    broken, fine = study.run_row(row, CASE, subject, 2)
    assert study.values_of(broken)["reason"] == "RuntimeError: c.cpp says no"
    assert study.values_of(fine)["seeds"] == 2
    missing = replace(PEER, environment="modelopt")
    (one, _) = study.run_row(missing, CASE, subject, 1, subject.folder / "none")
    assert "benchmarks.peers.environment modelopt" in study.values_of(one)["reason"]


def found(row: Row, runtime: str, *sqnr: float, agreement: float = 0.99) -> Found:
    values = {seed: accuracy(value, agreement=agreement) for seed, value in enumerate(sqnr)}
    return Found(row, runtime, values)


def claims_of(*everything: Found) -> dict[str, tuple[float, bool]]:
    results = Results(False, lambda line: None)
    claim_all(results, "model", everything)
    return {claim.name: (claim.value, claim.met) for claim in results.claims}


def test_claims_hold_our_default_against_the_best_peer():
    claims = claims_of(
        found(OURS, "onnxruntime", 30.0, 31.0),
        found(replace(OURS, method="percentile"), "onnxruntime", 40.0, 40.0),
        found(PEER, "onnxruntime", 29.0, 30.5),
        found(PEER, "openvino", 30.0, 32.0, agreement=0.995),
        found(replace(PEER, whole=False), "openvino", 50.0, 50.0),
        found(replace(PEER, adapter="missing"), "onnxruntime"),
    )
    names = list(claims)
    assert len(names) == 4
    # Not our best row, which is chosen on the test set, and not the rows partly in float.
    assert names[0].startswith(
        "model, default, any runtime: SQNR of deploy-tools default in onnxru"
    )
    assert "over tool best in openvino" in names[0]
    assert claims[names[0]] == (-0.5, False)
    assert "both in onnxruntime" in names[1]
    assert claims[names[1]] == (0.75, True)
    assert claims[names[2]] == (0.99, False)
    assert claims[names[3]] == (0.99, False)


def test_the_lead_shall_grow_with_hard_settings():
    ours, peer = (
        replace(OURS, setting=S8S8, method=f"{DEFAULT}, for arm"),
        replace(PEER, setting=S8S8),
    )
    everything = [
        found(OURS, "onnxruntime", 32.0, 32.0),
        found(PEER, "onnxruntime", 30.0, 30.0),
        found(ours, "onnxruntime", 29.0, 29.0),
    ]
    for value, met in ((26.5, True), (27.5, False)):
        claims = claims_of(*everything, found(peer, "onnxruntime", value, value))
        name = next(name for name in claims if "lead with S8S8" in name)
        assert claims[name] == (29.0 - value, met)
    # A file of the default setting that is S8S8 is compared with there too.
    also = found(replace(PEER, also=(S8S8,)), "onnxruntime", 28.0, 28.0)
    claims = claims_of(*everything, also)
    assert next(v for n, v in claims.items() if "S8S8, any" in n) == (1.0, True)


def test_branches_in_float_have_claims_of_their_own():
    free = found(replace(OURS, method=FREE), "onnxruntime", 32.5, 33.0)
    claims = claims_of(
        found(OURS, "onnxruntime", 31.0, 31.0), free, found(PEER, "onnxruntime", 30.0, 30.0)
    )
    assert next(v for n, v in claims.items() if f"{FREE}, any" in n) == (2.75, False)
    assert next(v for n, v in claims.items() if "any" in n and FREE not in n) == (
        1.0, False,
    )  # fmt: skip


def test_nothing_to_compare_is_no_claim():
    assert claims_of(found(OURS, "onnxruntime", 30.0)) == {}
    assert claims_of(found(PEER, "onnxruntime", 30.0)) == {}


def test_the_real_thing_small(monkeypatch, shared_data, tmp_path):
    """Ours and onnxruntime's own, on the public ResNet-20: 30 images calibrate, 200 judge."""
    few = [replace(case, images=30) for case in cases(shared_data)]
    wanted = ("deploy-tools", "onnxruntime")
    kept = [row for row in study.rows() if row.quick and row.tool in wanted]
    monkeypatch.setattr(study, "cases", lambda data: tuple(few))
    monkeypatch.setattr(study, "rows", lambda: kept)
    monkeypatch.setattr(study, "QUICK_IMAGES", 200)
    command = run_study("peers_accuracy", study.study, study._OPTIONS)
    arguments = ["--data", str(shared_data), "--quick", "--json", "--keep", str(tmp_path)]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout.splitlines()[-1])
    first, *rows = values["rows"]
    assert (first["model"], first["images"]) == ("resnet20", 200)
    ran = [row for row in rows if "status" not in row]
    assert {row["tool"] for row in ran if row["runtime"] == "onnxruntime"} == set(wanted)
    for row in ran:
        assert 15 < row["sqnr_db"] < 45
        assert row["peak_rss_bytes"] > 50e6
        assert 200e3 < row["file_bytes"] < 600e3
    # What is not here is named, not left out.
    assert len(rows) == sum(len(row.runtimes) for row in kept)
    assert any("both in onnxruntime" in claim["name"] for claim in values["claims"])
    file = json.loads((tmp_path / "peers_accuracy-resnet20-part.json").read_text("utf-8"))
    assert file["rows"] == values["rows"]
    assert file["command"].startswith("python -m benchmarks.studies.peers_accuracy")
    assert file["tools"]["nvidia-modelopt"] == "0.47.0"


def test_unknown_models_are_named(tmp_path):
    with pytest.raises(UserError, match="resnet20-fashion"):
        study._chosen(tmp_path, ("resnet20-fashio",), False)
    names = [case.name for case in study._chosen(tmp_path, (), False)]
    assert names == ["resnet20", "resnet32", "resnet18-flowers", "resnet20-fashion"]
    assert [case.name for case in study._chosen(tmp_path, ("resnet32",), True)] == ["resnet32"]


def test_the_seeds_of_a_run(subject, monkeypatch):
    rows = (PEER, replace(PEER, setting=HARD[0]), replace(PEER, seeds=1))
    monkeypatch.setattr(study, "rows", lambda: rows)
    subject.baseline = type("B", (), {"__len__": lambda self: 100, "correct": subject.baseline.correct})()  # fmt: skip
    asked = []
    monkeypatch.setattr(study, "run_row", lambda row, *rest: asked.append(rest[2]) or [])
    study._one_model(Results(False, print), CASE, subject, 0, (), None, NOTHING)
    study._one_model(Results(False, print), CASE, subject, 2, (PLAIN,), None, NOTHING)
    study._one_model(Results(True, print), CASE, subject, 0, (), None, NOTHING)
    assert asked == [5, 3, 1, 2, 1]


def test_spread_over_the_seeds():
    row = spread([accuracy(30.0, -0.1), accuracy(32.0, 0.3)])
    assert (row["seeds"], row["sqnr_db"], row["sqnr_db_min"], row["sqnr_db_max"]) == (2, 31, 30, 32)
    assert row["drop_pp"] == pytest.approx(0.1)
    assert row["worst_p"] == 0.5
    assert mean_sqnr([accuracy(30.0), accuracy(33.0)]) == 31.5


def test_an_interrupted_run_is_kept_beside_its_results(subject, monkeypatch, tmp_path):
    monkeypatch.setattr(study, "rows", lambda: (PEER,))
    subject.baseline = type("B", (), {"__len__": lambda self: 100, "correct": subject.baseline.correct})()  # fmt: skip
    done = study._done_rows(CASE, tmp_path, 0, (), False, None)
    monkeypatch.setattr(study, "run_row", lambda row, *rest: [Found(row, "onnxruntime", reason="no")])  # fmt: skip
    results = Results(False, lambda line: None)
    study._one_model(results, CASE, subject, 0, (), None, done)
    monkeypatch.setattr(study, "run_row", lambda *_: pytest.fail("it was done"))
    again = Results(False, lambda line: None)
    resumed = study._done_rows(CASE, tmp_path, 0, (), False, None)
    study._one_model(again, CASE, subject, 0, (), None, resumed)
    assert again.rows == results.rows
    assert (tmp_path / "peers_accuracy-some.done.jsonl").is_file()
    assert study._done_rows(CASE, tmp_path, 1, (), False, None).found(PEER) is None
    whole = study._done_rows(CASE, tmp_path, 0, (), False, None)
    assert whole.found(PEER) is not None, "a part leaves what the whole study has done"
    with_modelopt = study._done_rows(CASE, tmp_path, 0, (), False, Path("env"))
    assert with_modelopt.found(PEER) is None
