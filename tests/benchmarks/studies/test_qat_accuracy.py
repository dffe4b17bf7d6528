"""The study of fine-tuning, small: 32 images calibrate, 100 train, 200 judge."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.studies import ablation_accuracy, qat_accuracy
from benchmarks.studies.subject import shipped_case


def test_the_real_thing_small(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fashion_train: object
) -> None:
    few = replace(shipped_case(), images=32)
    monkeypatch.setattr(qat_accuracy, "case_named", lambda data, model: few)
    monkeypatch.setattr(ablation_accuracy, "QUICK_IMAGES", 200)
    hard = qat_accuracy.settings(quick=True)["hard"]
    plain = replace(hard.int8, ranges="minmax", equalize=False, rounding="nearest",
                    bias_correction=False)  # fmt: skip
    short = replace(hard, int8=plain, qat=replace(hard.qat, epochs=2, images=100, batch=20))
    monkeypatch.setattr(qat_accuracy, "settings", lambda quick: {"hard": short})
    plot = tmp_path / "qat.svg"
    arguments = ["--data", str(tmp_path), "--quick", "--json", "--plot", str(plot)]
    done = CliRunner().invoke(qat_accuracy.command, arguments)
    assert done.exit_code == 0, done.output
    fp32, start, trained, course = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert fp32["correct"] > 180
    assert (start["row"], trained["row"]) == ("start", "qat")
    # Weights of 4 bits: bad before, better after, and the start is really of 4 bits.
    assert start["sqnr_db"] < 20
    assert trained["sqnr_db"] > start["sqnr_db"] + 0.5
    assert [row["epoch"] for row in course["curve"]] == [0, 1, 2]
    assert "<svg" in plot.read_text("utf-8")
