"""The second table, and what the rest of the report makes of the other scenarios."""

import copy

import numpy as np
import pytest

from benchmarks.report import validate_report, write_report
from benchmarks.report.scenarios import scenario_rows
from benchmarks.report.table import run_of, summary_rows
from benchmarks.samples import SampleSet, Slot, read_samples, write_samples
from benchmarks.speed import SpeedRun
from deploy_tools.errors import ArtifactError


def samples(variant, scenario, ms, batch=1, rate=None, energy=None, **more):
    slots = []
    for number in range(5):
        durations = np.full(200, round(1e6 * ms * (1 + 0.01 * number)), np.int64)
        slots.append(Slot(number, 0, np.cumsum(durations) - durations, durations, rate, energy))
    return SampleSet(variant, scenario, batch, 2, 1, tuple(slots), **more)


@pytest.fixture
def wide(report):
    """The report with a multi-stream, a server and an end-to-end run for each variant."""
    values, folder = copy.deepcopy(report[0]), report[1]
    made = {}
    for name, ms, rate in (("fp32-ort", 20.0, 10.0), ("int8-static-ort", 4.0, 150.0)):
        made[name] = [
            samples(name, "multi-stream", ms, 8),
            samples(name, "server", ms, rate=rate, latency_limit_ms=15.0),
            samples(name, "offline", 3 * ms, 8, end_to_end=True),
        ]
    for variant in values["variants"][:2]:
        path = f"samples/{variant['id']}.jsonl"
        sets = [*read_samples(folder / path), *made[variant["id"]]]
        write_samples(folder / path, sets)
        base = made["fp32-ort"]
        variant["speed"]["runs"] += [
            SpeedRun(mine, theirs).to_dict(path)
            for mine, theirs in zip(made[variant["id"]], base, strict=True)
        ]
    return values, folder


def test_runs_of_other_scenarios_are_valid_and_shown(wide):
    values, folder = wide
    validate_report(values)
    headers, rows = scenario_rows(values)
    assert "J/image\n[95 % CI]" not in headers
    found = {(row[0], row[1]): row for row in rows}
    assert len(rows) == len(found) == 6
    assert found["int8-static-ort", "multi-stream"][2] == "8"
    server = found["int8-static-ort", "server"]
    assert server[3] == "15"
    assert float(server[4].split()[0]) <= float(server[5].split()[0]) <= float(server[6].split()[0])
    assert server[7].startswith("150\n")
    assert server[8] == "-"  # the baseline keeps the limit at no rate: there is no ratio
    assert found["fp32-ort", "server"][7] == "limit missed"
    assert found["int8-static-ort", "offline, end to end"][8].startswith("5.00x")
    paths = write_report(values, folder)
    for name in ("report.md", "report.html"):
        text = paths[name].read_text("utf-8")
        assert "Other scenarios" in text
        assert "limit missed" in text
        assert "15 ms" in text  # the note says which limit


def test_plots_keep_scenarios_and_end_to_end_apart(wide):
    pytest.importorskip("matplotlib")
    values, folder = wide
    text = write_report(values, folder)["report.html"].read_text("utf-8")
    for caption in (
        "single-stream, batch 1: the time of one call", "offline, batch 8: the time of one call",
        "offline, end to end, batch 8: the time of one call",
        "server, batch 1: the time of one query from its arrival on",
    ):  # fmt: skip
        assert text.count(caption) == 1, caption


def test_the_first_table_never_shows_end_to_end_runs(wide):
    values, _ = wide
    before = summary_rows(values)
    for variant in values["variants"][:2]:
        variant["speed"]["runs"].reverse()
        assert run_of(variant, "offline")["end_to_end"] is False
    assert summary_rows(values) == before


def test_a_report_without_them_has_one_table(report):
    values, folder = report
    assert scenario_rows(values)[1] == []
    assert "Other scenarios" not in write_report(values, folder)["report.md"].read_text("utf-8")


def test_a_given_rate_at_which_the_limit_is_missed_is_said(report):
    values = copy.deepcopy(report[0])
    for ms, said in ((20.0, True), (4.0, False)):
        fixed = samples(
            "fp32-ort", "server", ms, rate=10.0, latency_limit_ms=15.0, target_rate=10.0
        )
        values["variants"][1]["speed"]["runs"] = [SpeedRun(fixed, fixed).to_dict()]
        (row,) = scenario_rows(values)[1]
        assert row[7].startswith("limit missed at ") == said


def test_energy_is_shown_for_every_run_where_it_was_counted(report):
    values = copy.deepcopy(report[0])
    counted = samples("fp32-ort", "single-stream", 2.0, energy=5.0)
    values["variants"][1]["speed"]["runs"][0] = SpeedRun(counted, counted).to_dict()
    headers, rows = scenario_rows(values)
    assert headers[-1].startswith("J/image")
    assert rows[0][-1] == "0.025\n[0.025, 0.025]"
    assert len(rows) == 4


def test_only_a_server_run_may_lack_its_rate(wide):
    values, _ = wide
    runs = values["variants"][1]["speed"]["runs"]
    assert runs[3]["scenario"] == "server"
    assert runs[3]["images_per_s"] is runs[3]["speedup_ci95"] is None
    validate_report(values)
    runs[2]["images_per_s"] = None
    with pytest.raises(ArtifactError, match="images_per_s must be a number above 0"):
        validate_report(values)
