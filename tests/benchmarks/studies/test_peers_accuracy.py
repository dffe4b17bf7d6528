from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.studies import peers_accuracy as study
from benchmarks.studies.base import Results
from benchmarks.studies.subject import mean_sqnr, spread
from deploy_tools.recipe import METHODS


def accuracy(sqnr: float, drop: float = 0.1) -> SimpleNamespace:
    return SimpleNamespace(logit_sqnr_db=sqnr, agreement=0.99, drop_pp=drop, mcnemar_p=0.5)


@pytest.fixture
def fake(monkeypatch):
    """Every file's accuracy made up; `peer` is that of onnxruntime's files."""
    given = SimpleNamespace(peer=30.0, seeds=[], judged=[])

    class Subject:
        model, train, spec, folder = Path("m"), None, None, Path("folder")
        baseline = SimpleNamespace(correct=np.ones(7, np.bool_))

        def select(self, count, seed):
            given.seeds.append((count, seed))
            return SimpleNamespace(indices=np.arange(3))

        def statistics(self, selection):
            return None

        def judge(self, path, config):
            given.judged.append((path.name, config.runtime))
            return accuracy(given.peer if path.name == "peer.onnx" else 31.0)

    def nothing(*args, **options):
        return None

    monkeypatch.setattr(study, "prepare_subject", lambda *args: Subject())
    monkeypatch.setattr(study, "ranges_from_statistics", nothing)
    monkeypatch.setattr(study, "qdq_from_onnx", nothing)
    monkeypatch.setattr(study.onnxruntime_static, "quantize", nothing)
    return given


def test_every_tool_and_method_is_a_row(fake):
    results = Results(False, lambda line: None)
    study.study(results, Path("data"), Path("checkpoint"), "resnet20-cifar-a")
    assert results.rows[0]["correct"] == 7
    keys = [(row["tool"], row["method"], row["runtime"]) for row in results.rows[1:]]
    ours = [("deploy-tools", m, r) for m in METHODS for r in ("onnxruntime", "openvino")]
    peers = [("onnxruntime", m, "onnxruntime") for m in ("MinMax", "Percentile", "Entropy")]
    assert keys == [*ours, *peers]
    assert fake.seeds == [(500, seed) for seed in range(5)]
    assert {runtime for name, runtime in fake.judged if name == "peer.onnx"} == {"onnxruntime"}
    assert [claim.met for claim in results.claims] == [True] * 4


def test_a_better_peer_is_a_claim_not_met(fake):
    fake.peer = 31.5
    results = Results(True, lambda line: None)
    study.study(results, Path("data"), Path("checkpoint"), "resnet20-cifar-a")
    assert [claim.met for claim in results.claims] == [False, False, False, True]
    assert fake.seeds == [(500, 0)]


def test_spread_over_the_seeds():
    row = spread([accuracy(30.0, -0.1), accuracy(32.0, 0.3)])
    assert (row["seeds"], row["sqnr_db"], row["sqnr_db_min"], row["sqnr_db_max"]) == (2, 31, 30, 32)
    assert row["drop_pp"] == pytest.approx(0.1)
    assert row["worst_p"] == 0.5
    assert mean_sqnr([accuracy(30.0), accuracy(33.0)]) == 31.5
