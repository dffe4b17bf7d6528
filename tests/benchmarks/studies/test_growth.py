"""The study of growth: its fits, its tasks, its stages for real on a small network, its pictures."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from benchmarks.studies import growth
from benchmarks.studies.base import Results
from benchmarks.studies.growth_fit import fit_of
from benchmarks.studies.growth_plot import plot, table
from benchmarks.studies.growth_stages import STAGES, Cost, Task, cost_of, keep_to
from deploy_tools.errors import UserError


def test_a_line_is_found_and_its_exponent_is_one_at_most() -> None:
    sizes = [20, 56, 110, 1202]
    fit = fit_of(sizes, [0.5 + 0.01 * size for size in sizes])
    assert fit.slope == pytest.approx(0.01)
    assert fit.intercept == pytest.approx(0.5)
    assert fit.r2 == pytest.approx(1)
    assert 0.8 < fit.exponent < 1
    assert (fit.low, fit.high) == (110, 1202)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_exponent_is_that_of_a_power(power: float) -> None:
    sizes = [64, 128, 256, 512, 1024, 2048]
    fit = fit_of(sizes, [3.0 * size**power for size in sizes])
    assert fit.exponent == pytest.approx(power)
    assert (fit.low, fit.high) == (512, 2048)


@pytest.mark.parametrize(
    ("sizes", "costs", "message"),
    [
        ([1, 2], [1.0, 2.0], "4 times smaller"),
        ([4, 1], [1.0, 2.0], "not rising"),
        ([1, 4], [1.0], "not one for each"),
        ([1, 4], [1.0, 0.0], "positive"),
    ],
)
def test_what_gives_no_fit_is_refused(sizes: list[float], costs: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_of(sizes, costs)


def task(folder: Path, data: Path, stage: str = "", **other: Any) -> Task:
    values = {"depth": 8, "calibration": 16, "evaluation": 40, **other}
    return Task(stage, str(folder), data=str(data), **values)


def test_every_stage_reads_what_those_before_it_wrote(shared_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, prepare in STAGES.items():
        prepare(task(folder, shared_data / "cifar10", name))()
    floats, ints = (onnx.load(str(folder / f"{n}.onnx")) for n in ("fp32", "int8"))
    assert sum(node.op_type == "Conv" for node in floats.graph.node) == 9
    assert not any(node.op_type == "BatchNormalization" for node in floats.graph.node)
    assert any(node.op_type == "QuantizeLinear" for node in ints.graph.node)
    for ranges in ("mse", "auto"):
        proto = onnx.load(str(folder / f"corrected-{ranges}.onnx"))
        notes = {prop.key: prop.value for prop in proto.metadata_props}
        assert notes["deploy_tools.corrections"].startswith("equalize,gptq")
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert [v["accuracy"]["images"] for v in report["variants"]] == [40, 40]
    assert (folder / "report.html").stat().st_size > 10_000


def test_a_stage_in_a_process_of_its_own(shared_data: Path, tmp_path: Path) -> None:
    cost = cost_of(task(tmp_path, shared_data / "cifar10", "fold"))
    assert 0 < cost.cpu_seconds < 60
    assert 50 << 20 < cost.start_rss_bytes <= cost.peak_rss_bytes < 4 << 30
    with pytest.raises(UserError, match=r"calibrate of ResNet-8 failed: .*fp32\.onnx"):
        cost_of(task(tmp_path, shared_data / "cifar10", "calibrate"))


def test_tasks_come_after_what_they_read(shared_data: Path, tmp_path: Path) -> None:
    plan = growth.Plan((8, 14, 20), 14, 4, 5, (6, 99_999), (7, 10_001), 1)
    found = list(growth.tasks(plan, task(tmp_path, shared_data / "cifar10")))
    names = [(axis, size, one.stage) for axis, size, one in found]
    assert len(set(names)) == len(names)
    quick = [stage for stage in growth.BY_DEPTH if stage != growth.AUTO]
    for depth in plan.depths:
        own = [stage for axis, size, stage in names if (axis, size) == (growth.DEPTH, depth)]
        assert own == (quick if depth > plan.auto_depth else [*quick, growth.AUTO])
    # Whoever stops early has most: the deepest after the images, the default's ranges at the end.
    deepest = names.index((growth.DEPTH, 20, quick[0]))
    assert deepest > max(i for i, name in enumerate(names) if name[0] == growth.EVALUATION)
    late = [name for name in names if name[2] == growth.AUTO]
    most = len(task(tmp_path, shared_data / "cifar10").source("train"))  # fewer than asked for
    assert names[-len(late) :] == late
    assert late == [
        (growth.DEPTH, 8, growth.AUTO), (growth.DEPTH, 14, growth.AUTO),
        (growth.CALIBRATION, 6, growth.AUTO), (growth.CALIBRATION, most, growth.AUTO),
    ]  # fmt: skip
    sizes = {axis: [size for a, size, _ in found if a == axis] for axis in growth.AXES}
    assert sizes[growth.EVALUATION] == [7, 7, 10_000, 10_000]  # the last is what the split has
    for axis, size, one in found:
        if axis != growth.DEPTH:
            assert (one.depth, one.folder) == (8, str(tmp_path / "8"))
            assert size == (one.calibration if axis == growth.CALIBRATION else one.evaluation)


def test_the_default_is_not_tried_above_its_depth_on_any_axis(
    shared_data: Path, tmp_path: Path
) -> None:
    plan = growth.Plan((20,), 8, 4, 5, (6,), (7,), 1)
    found = list(growth.tasks(plan, task(tmp_path, shared_data / "cifar10", depth=20)))
    assert growth.CALIBRATION in {axis for axis, _, _ in found}
    assert growth.AUTO not in {one.stage for _, _, one in found}


def test_one_axis_needs_the_first_depth_alone(shared_data: Path, tmp_path: Path) -> None:
    plan = growth.Plan((8, 14), 8, 4, 5, (6,), (7,), 1)
    first = task(tmp_path, shared_data / "cifar10")
    found = list(growth.tasks(plan, first, (growth.EVALUATION,)))
    assert {one.depth for _, _, one in found} == {8}
    assert [axis for axis, _, _ in found if axis != growth.DEPTH] == [growth.EVALUATION] * 2
    assert growth.AUTO not in {one.stage for _, _, one in found}


@pytest.mark.parametrize("part", [(), ("--axis", growth.DEPTH)])
def test_main_goes_on_behind_a_stage_that_fails(
    part: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, shared_data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")

    def cost(one: Task) -> Cost:
        if (one.stage, one.depth) == ("predict", 20):
            raise UserError("predict of ResNet-20 failed: no such file")
        return Cost(30.0, one.depth * one.calibration / 64, 100 << 20, 200 << 20)

    monkeypatch.setattr(growth, "cost_of", cost)
    keep = tmp_path / "kept"
    arguments = ["--data", str(shared_data / "cifar10"), "--keep", str(keep), "--json", *part]
    done = CliRunner().invoke(growth.command, arguments)
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    (failed,) = (row for row in rows if "reason" in row and row["axis"] == growth.DEPTH)
    assert (failed["stage"], failed["size"], failed["status"]) == ("predict", 20, "did not run")
    assert {"slope", "cpu_seconds"} <= {key for row in rows for key in row}
    name = "growth-part" if part else "growth"
    assert {path.name for path in keep.iterdir()} == {f"{name}.md", f"{name}.svg"}
    page, svg = ((keep / f"{name}.{end}").read_text("utf-8") for end in ("md", "svg"))
    for text in (page, svg):
        assert "benchmarks.studies.growth --data DIR" in text
        assert "cores" in text
    assert "- predict by depth, 20: predict of ResNet-20 failed" in page
    assert str(tmp_path) not in page + svg


def test_a_stage_keeps_to_its_cores_and_is_stopped_when_it_takes_too_long(
    shared_data: Path, tmp_path: Path
) -> None:
    if hasattr(os, "sched_getaffinity"):
        before = os.sched_getaffinity(0)
        try:
            keep_to(1)
            assert os.sched_getaffinity(0) == {max(before)}
        finally:
            os.sched_setaffinity(0, before)
    with pytest.raises(UserError, match=r"fold of ResNet-8 took over 0 s and was stopped"):
        cost_of(task(tmp_path, shared_data / "cifar10", "fold"), timeout_s=0.01)


def test_the_least_of_a_few_runs_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    left = [Cost(9.0, 3.0, 1, 2), Cost(9.0, 2.0, 1, 2), Cost(9.0, 1.0, 1, 2)]
    monkeypatch.setattr(growth, "cost_of", lambda _: left.pop(0))
    plan = growth.Plan((8,), 8, 4, 5, (), (), repeats=3, again_s=10.0)
    cost, runs = growth._least(Task("fold", "", 8, "", 1, 1), plan)
    assert (cost.cpu_seconds, runs) == (2.0, 2)  # two took more than 10 seconds


def rows(power: float) -> list[dict[str, Any]]:
    sizes = (64, 256, 1024)
    return [
        {"axis": growth.CALIBRATION, "stage": stage, "size": size,
         "cpu_seconds": scale * size**power, "peak_mib": 300.0 + size * (power - 1)}
        for stage, scale in (("calibrate", 1e-2), ("quantize, default", 0.5))
        for size in sizes
    ]  # fmt: skip


@pytest.mark.parametrize(("power", "met"), [(1.0, True), (2.0, False)])
def test_claims_say_what_grows_too_fast(power: float, met: bool) -> None:
    results = Results(quick=False, say=lambda _: None)
    growth._fits(results, rows(power))
    assert len(results.claims) == 4
    assert {claim.met for claim in results.claims} == {met}
    assert results.claims[0].value == pytest.approx(power)


def test_the_square_of_the_depth_is_allowed_where_it_is_known() -> None:
    results = Results(quick=False, say=lambda _: None)
    own = [row | {"axis": growth.DEPTH} for row in rows(2.0)]
    growth._fits(results, own)
    assert {c.name: c.met for c in results.claims if "CPU" in c.name} == {
        "calibrate by depth: exponent of the CPU time": False,
        "quantize, default by depth: exponent of the CPU time": True,
    }


def test_the_table_and_the_picture_show_every_row() -> None:
    pytest.importorskip("matplotlib")
    found = [*rows(1.0), *({**row, "axis": growth.DEPTH, "size": 20} for row in rows(1.0)[:1])]
    results = Results(quick=False, say=lambda _: None)
    text = table(found, growth._fits(results, rows(1.0)))
    assert "### By calibration images" in text
    assert "| calibrate | CPU seconds | 0.64 | 2.56 | 10.2 | 0.01 | 1.00 |" in text
    assert "| calibrate | CPU seconds | 0.64 |  |  |" in text
    svg = ElementTree.fromstring(plot(found))
    words = "".join(svg.itertext())
    for word in ("calibrate", "quantize, default", growth.CALIBRATION, growth.DEPTH, "MiB"):
        assert word in words
    assert np.isfinite(float(svg.get("viewBox", "").split()[2]))


def test_depths_that_are_none_are_refused(shared_data: Path) -> None:
    arguments = ["--data", str(shared_data / "cifar10"), "--depths", "20,deep"]
    done = CliRunner().invoke(growth.command, arguments)
    assert done.exit_code == 2
    assert "--depths 20,56,110" in done.output
