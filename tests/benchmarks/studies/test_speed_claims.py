"""Claims about speed, on timings that are made up, so that their ratios are known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.peers.setting import Search, Setting
from benchmarks.samples import SampleSet, Slot
from benchmarks.speed_run import SpeedRun
from benchmarks.studies.base import Results
from benchmarks.studies.speed_claims import (
    best_of,
    claim_speed,
    duel_values,
    finalists,
    ratio_of,
    values_of,
)
from benchmarks.studies.speed_rows import BASELINE, US, Row
from benchmarks.studies.speed_run import Timed

ROUNDS = 12
NOISE = np.random.default_rng(0).uniform(0.9, 1.1, ROUNDS)


def samples(name: str, milliseconds: float, scenario: str = "single-stream") -> SampleSet:
    """One call a round; the machine's noise is the same for all variants."""
    slots = tuple(
        Slot(i, 0, np.array([0], np.int64), np.array([round(milliseconds * 1e6 * noise)], np.int64))
        for i, noise in enumerate(NOISE)
    )
    return SampleSet(name, scenario, 1, 2, 1, slots)


def timed(
    tool: str, way: str, kind: str, milliseconds: float, scenario="single-stream", again=0.0
) -> Timed:
    """again: milliseconds in the run of the finalists, the same as in the run without."""
    row = Row(tool, way, kind, "file", None)  # type: ignore[arg-type]
    base = samples(BASELINE, 40.0, scenario)
    own = base if row.name == BASELINE else samples(row.name, milliseconds, scenario)
    search = Search(Setting(2, 1, 1), {Setting(2, 1, 1): 1e3 / milliseconds})
    duel = samples(row.name, again, scenario) if again else own
    return Timed(row, "", search, "int8+fp32", 30.0, SpeedRun(own, base), SpeedRun(duel, base))


def everything(ours: float, peer: float, scenario: str = "single-stream") -> list[Timed]:
    missing = Timed(Row("torch", "missing", "int8", "file", None), "no compiler")  # type: ignore[arg-type]
    return [
        timed("onnxruntime", "FP32", "fp32", 40.0, scenario),
        timed("OpenVINO", "INT8", "int8", peer, scenario),
        timed("torch", "eager", "fp32", 80.0, scenario),
        timed(US, "int8", "int8", ours, scenario),
        timed(US, "int8, uint8 input", "int8", 2 * ours, scenario),
        timed(US, "bf16", "bf16", 30.0, scenario),
        missing,
    ]


def claims_of(scenario: str, rows: list[Timed]):
    results = Results(False, lambda line: None)
    claim_speed(results, "model", scenario, rows)
    return results.claims


def test_ours_is_held_against_the_best_of_the_others() -> None:
    beside, goal = claims_of("single-stream", everything(5.0, 5.05))
    assert "deploy-tools int8 over OpenVINO INT8" in beside.name
    assert "1.01x" in beside.name
    assert beside.value == pytest.approx(1.01, abs=1e-3)
    assert (beside.target, beside.met) == (">= 0.98", True)
    assert goal.value == pytest.approx(8.0, abs=1e-3)
    assert (goal.target, goal.met) == (">= 7.5", True)
    assert "over onnxruntime FP32" in goal.name


def test_slower_is_not_met() -> None:
    beside, goal = claims_of("offline", everything(5.0, 4.8, "offline"))
    assert beside.value == pytest.approx(0.96, abs=1e-3)
    assert not beside.met
    assert (goal.target, goal.met) == (">= 10.5", False)


def test_the_low_end_of_the_interval_decides() -> None:
    """Rounds that differ between the two: the median is 1, the interval reaches below 0.98."""
    rows = everything(5.0, 5.0)
    shaky = samples("OpenVINO INT8", 5.0)
    for index, slot in enumerate(shaky.slots):
        slot.durations_ns[:] = slot.durations_ns * (1.2 if index % 2 else 0.8)
    base = rows[0].run
    rows[1].duel = SpeedRun(shaky, base.samples)
    ratio = ratio_of(rows[3].duel, rows[1].duel)
    assert ratio.low < 0.98 < ratio.high
    beside, _ = claims_of("single-stream", rows)
    assert beside.value == ratio.low
    assert not beside.met


def test_our_bf16_may_be_the_fastest_but_is_no_int8() -> None:
    rows = everything(10.0, 20.0)
    rows[5] = timed(US, "bf16", "bf16", 4.0)
    beside, goal = claims_of("single-stream", rows)
    assert "deploy-tools bf16 over OpenVINO INT8" in beside.name
    assert beside.value == pytest.approx(5.0, abs=1e-2)
    assert goal.value == pytest.approx(4.0, abs=1e-2)


def test_a_side_that_did_not_run_is_not_met() -> None:
    rows = [each for each in everything(5.0, 5.0) if not each.row.ours]
    beside, goal = claims_of("single-stream", rows)
    assert (beside.value, beside.met, goal.value, goal.met) == (None, False, None, False)


def test_other_scenarios_have_no_goal_over_the_baseline() -> None:
    assert len(claims_of("multi-stream", everything(5.0, 5.0, "multi-stream"))) == 1


def test_the_fastest_of_the_chosen() -> None:
    rows = everything(5.0, 4.0)
    assert best_of(rows, lambda each: True).row.name == "OpenVINO INT8"
    assert best_of(rows, lambda each: each.row.kind == "fp32").row.name == BASELINE
    assert best_of(rows, lambda each: False) is None


def test_the_best_are_judged_by_a_run_of_their_own() -> None:
    """A row that is the fastest by luck is chosen, and held to what it does once more."""
    rows = everything(5.0, 5.0)
    rows.append(timed(US, "lucky", "int8", 4.0, again=6.0))
    beside, goal = claims_of("single-stream", rows)
    assert "deploy-tools lucky over OpenVINO INT8" in beside.name
    assert beside.value == pytest.approx(5 / 6, abs=1e-3)
    assert goal.value == pytest.approx(40 / 6, abs=1e-2)


def test_finalists_are_the_baseline_and_the_best_of_each_side() -> None:
    rows = everything(5.0, 5.1)
    rows.append(timed(US, "bf16 too", "bf16", 4.0))
    names = [each.row.name for each in finalists(rows)]
    assert names == [BASELINE, "OpenVINO INT8", f"{US} bf16 too", f"{US} int8"]
    ours_alone = [each for each in rows if each.row.ours or each.row.name == BASELINE]
    assert [each.row.name for each in finalists(ours_alone)] == [BASELINE, *names[2:]]
    (alone,) = finalists(rows[:1])
    assert duel_values(alone)["finalist"] == BASELINE


@pytest.mark.parametrize(("ours", "met"), [(29.6, True), (29.4, False)])
def test_the_fastest_has_to_be_as_accurate_as_the_plain_file(ours: float, met: bool) -> None:
    rows = everything(5.0, 5.05)
    rows.append(timed("onnxruntime", "INT8, U8S8 per channel", "int8", 12.0))
    rows[3].sqnr_db = ours
    _, accuracy, _ = claims_of("single-stream", rows)
    assert "logit SQNR of deploy-tools int8" in accuracy.name
    assert (accuracy.target, accuracy.met) == (">= -0.5", met)
    assert accuracy.value == pytest.approx(ours - 30.0)


def test_columns_hold_the_figures_or_the_reason() -> None:
    rows = everything(5.0, 4.0)
    values = values_of(rows[3])
    assert values["speedup"] == pytest.approx(8.0, abs=1e-3)
    assert values["speedup_ci95"][0] <= 8.0 <= values["speedup_ci95"][1] + 1e-3
    assert values["rounds_images_per_s"] == pytest.approx(list(200 / NOISE), rel=1e-3)
    assert (values["threads"], values["streams"], values["chunk"]) == (2, 1, 1)
    assert values["tried"] == {"1 x 2 threads, chunks of 1": 200.0}
    assert values["p50_ms"] <= values["p90_ms"] <= values["p99_ms"]
    assert values["p90_ms_ci95"][0] <= values["p90_ms"] <= values["p90_ms_ci95"][1]
    assert "status" not in values
    assert values_of(rows[-1]) == {
        "tool": "torch", "way": "missing", "kind": "int8", "input": "float",
        "status": "did not run", "reason": "no compiler",
    }  # fmt: skip
    json.dumps([values_of(each) for each in rows], allow_nan=False)
