from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.studies import subject as subjects
from benchmarks.studies import tensorrt_accuracy as study
from benchmarks.studies.base import Results, run_study

KEPT = Path(__file__).resolve().parents[3] / "benchmarks" / "results" / "tensorrt_accuracy.json"
OURS = "tensorrt, simulated"


def accuracy(sqnr: float) -> SimpleNamespace:
    return SimpleNamespace(logit_sqnr_db=sqnr, agreement=0.99, drop_pp=0.1, mcnemar_p=0.5)


def test_one_seed_on_the_public_resnet20(monkeypatch, shared_data):
    """The real thing, small: rows of every file, and claims that follow from them."""
    opened = []
    real = subjects.open_session

    def open_session(path, config=None):
        opened.append((path.name, config))
        return real(path, config)

    few = replace(study.cases(shared_data)[0], images=30)
    monkeypatch.setattr(subjects, "open_session", open_session)
    monkeypatch.setattr(study, "cases", lambda data: (few,))
    monkeypatch.setattr(study, "QUICK_SEEDS", 1)
    monkeypatch.setattr(study, "QUICK_IMAGES", 200)
    command = run_study("tensorrt_accuracy", study.study, study._OPTIONS)
    done = CliRunner().invoke(command, ["--data", str(shared_data), "--quick", "--json"])
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout.splitlines()[-1])
    first, *rows = values["rows"]
    assert (first["tool"], first["images"]) == ("fp32", 200)
    assert first["correct"] > 170
    assert [(r["tool"], r["ranges"], r["rest"]) for r in rows] == [
        (OURS, "mse", "fp32"),
        (OURS, "mse", "fp16"),
        (OURS, "minmax", "fp32"),
        ("onnxruntime", "MinMax", "fp32"),
        ("onnxruntime", "Percentile", "fp32"),
    ]
    assert all(15 < row["sqnr_db"] < 45 and row["seeds"] == 1 for row in rows)
    best = max(row["sqnr_db"] for row in rows[3:])
    for claim, row, peer in zip(
        values["claims"], rows[:3], (best, best, rows[3]["sqnr_db"]), strict=True
    ):
        assert claim["value"] == pytest.approx(row["sqnr_db"] - peer)
        assert claim["met"] == (row["sqnr_db"] >= peer)
        assert row["sqnr_db_by_seed"] == [row["sqnr_db"]]
    # Ours as its arithmetic is written, the peer's as onnxruntime runs it.
    fusions = {name: config.fusions for name, config in opened if config is not None}
    assert fusions == {"tensorrt.onnx": False, "tensorrt-fp16.onnx": False, "peer.onnx": True}


@pytest.fixture
def fake(monkeypatch):
    """Every file's accuracy made up; what the study asks for is kept."""
    asked = SimpleNamespace(models=[], seeds=[], peer=26.0)
    correct = np.ones(10, np.bool_)

    class Baseline:
        def __len__(self):
            return 10

    Baseline.correct = correct

    class Subject:
        baseline = Baseline()

        def select(self, count, seed):
            asked.seeds.append((count, seed))
            return seed

    def prepare(folder, model, given, data, images):
        asked.models.append((model.arch, model.checkpoint, data, images))
        return Subject()

    def ours(subject, seed):
        for ranges, rest, sqnr in (
            ("mse", "fp32", 28.0), ("mse", "fp16", 27.0), ("minmax", "fp32", 19.0)
        ):  # fmt: skip
            yield (OURS, ranges, rest), accuracy(sqnr + 0.1 * seed)

    monkeypatch.setattr(study, "prepare_subject", prepare)
    monkeypatch.setattr(study, "_ours", ours)

    def peers(subject, seed):
        yield study.PEERS[0], accuracy(20.0)
        yield study.PEERS[1], accuracy(asked.peer)

    monkeypatch.setattr(study, "_peers", peers)
    return asked


def test_the_full_run_has_three_models_and_five_seeds(fake):
    results = Results(False, lambda line: None)
    study.study(results, Path("data"))
    assert [model[0] for model in fake.models] == [
        "resnet20-cifar-a", "resnet32-cifar-a", "resnet18",
    ]  # fmt: skip
    assert all(images is None for *_, images in fake.models)
    assert [data.evaluation for *_, data, _ in fake.models] == ["test", "test", "val"]
    assert {data.calibration for *_, data, _ in fake.models} == {"train"}
    assert fake.seeds[:5] == [(500, 0), (500, 1), (500, 2), (500, 3), (500, 4)]
    assert fake.seeds[10:] == [(256, seed) for seed in range(5)]
    assert [claim.met for claim in results.claims] == [True, True, False] * 3
    assert "minmax ranges" in results.claims[2].name
    assert "MinMax" in results.claims[2].name
    row = results.rows[1]
    assert (row["seeds"], row["sqnr_db_min"], row["sqnr_db_max"]) == (5, 28.0, 28.4)
    assert row["sqnr_db"] == pytest.approx(28.2)


def test_a_better_peer_is_a_claim_not_met(fake):
    fake.peer = 27.5
    results = Results(True, lambda line: None)
    study.study(results, Path("data"))
    assert [claim.met for claim in results.claims] == [True, False, False]
    assert results.claims[1].value == pytest.approx(27.05 - 27.5)
    assert len(fake.models) == 1
    assert fake.models[0][3] == tuple(range(2000))


def test_missing_data_is_named(tmp_path):
    command = run_study("tensorrt_accuracy", study.study, study._OPTIONS)
    done = CliRunner().invoke(command, ["--data", str(tmp_path), "--quick"])
    assert done.exit_code == 2
    assert "resnet20-12fca82f.th" in done.stderr


def test_the_kept_claims_follow_from_the_kept_rows():
    kept = json.loads(KEPT.read_text("utf-8"))
    sqnr = {
        (row["model"], row["ranges"], row["rest"]): row["sqnr_db"]
        for row in kept["rows"]
        if row["tool"] != "fp32"
    }
    assert len(sqnr) == 15
    assert len(kept["claims"]) == 9
    for claim in kept["claims"]:
        model = claim["name"].partition(":")[0]
        ranges = "minmax" if "minmax ranges" in claim["name"] else "mse"
        rest = "fp16" if "rest in fp16" in claim["name"] else "fp32"
        methods = ("MinMax",) if ranges == "minmax" else ("MinMax", "Percentile")
        peer = max(sqnr[model, method, "fp32"] for method in methods)
        difference = sqnr[model, ranges, rest] - peer
        assert claim["value"] == pytest.approx(difference)
        assert claim["met"] == (difference >= 0)


def test_the_interval_is_students_over_paired_seeds():
    ours, peers = [accuracy(v) for v in (2.0, 4.0, 6.0, 8.0, 10.0)], [accuracy(1.0)] * 5
    mean, low, high = study.paired_difference(ours, peers)
    assert mean == pytest.approx(5.0)
    # 2.776 * sqrt(10) / sqrt(5)
    assert (low, high) == pytest.approx((5.0 - 3.9259, 5.0 + 3.9259), abs=1e-3)
    # What both have in common does not widen it.
    peers = [accuracy(v - 1.0) for v in (2.0, 4.0, 6.0, 8.0, 10.0)]
    assert study.paired_difference(ours, peers) == pytest.approx((1.0, 1.0, 1.0))
