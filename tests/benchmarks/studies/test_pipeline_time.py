"""The study of the pipeline's own time: its parts, its step clock, its claims."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.peers.base import Job, PeerFile
from benchmarks.studies import pipeline_parts, pipeline_time
from benchmarks.studies.base import Results
from benchmarks.studies.pipeline_parts import StepClock, quantize, read_steps
from deploy_tools.errors import UserError
from deploy_tools.onnx_files import input_spec_of, load_onnx
from deploy_tools.recipe import ModelTable


@pytest.fixture
def job(demo_onnx: Path, demo_checkpoint: Path) -> Job:
    spec = input_spec_of(load_onnx(demo_onnx), demo_onnx)
    origin = ModelTable("resnet20-cifar", str(demo_checkpoint))
    return Job(
        demo_onnx, spec, "fashion-mnist", None, "train", tuple(range(0, 800, 50)), (), origin
    )


def test_fold_and_export_gives_the_model_again(job: Job, tmp_path: Path) -> None:
    quantize(job, tmp_path / "again.onnx", "fold and export")
    again, given = load_onnx(tmp_path / "again.onnx"), load_onnx(job.model)
    assert [n.op_type for n in again.graph.node] == [n.op_type for n in given.graph.node]
    assert again.graph.initializer[0].raw_data == given.graph.initializer[0].raw_data


def test_the_default_says_what_each_step_took(job: Job, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    quantize(job, path, "quantize")
    assert any(n.op_type == "QuantizeLinear" for n in load_onnx(path).graph.node)
    steps = read_steps(path)
    assert {
        "observe channels", "weigh channels", "balance channels", "second moments", "round weights", "calibrate",
        "auto ranges", "mean outputs", "correct biases",
    } <= set(steps)  # fmt: skip
    assert list(steps.values()) == sorted(steps.values(), reverse=True)
    assert sum(steps.values()) > 0


def test_an_unknown_part_is_refused(job: Job, tmp_path: Path) -> None:
    with pytest.raises(UserError, match='no part "reports"'):
        quantize(job, tmp_path / "x", "reports")


def test_the_clock_gives_each_second_to_the_step_that_took_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(pipeline_parts, "_cpu_seconds", lambda: now[0])
    clock = StepClock()
    for elapsed, what, done in (
        (1.0, "round round-12345678", 0),  # before the first stage
        (2.0, "second moments", 8),
        (4.0, "second moments", 16),
        (8.0, "calibrate ranges-mse", 0),  # what the rounding did after its last word
        (16.0, "calibrate", 5),
    ):
        now[0] += elapsed
        clock(what, done, 0)
    now[0] += 32.0
    assert clock.seconds() == {"begin": 1.0, "second moments": 14.0, "calibrate": 48.0}


def cost(cpu: float, peak: int) -> PeerFile:
    return PeerFile(Path("x"), 2 * cpu, cpu, peak, 1)


@pytest.mark.parametrize(("cpu", "met"), [(4.0, [True, True]), (6.0, [False, True])])
def test_the_claim_is_about_the_quickest_other_tool(cpu: float, met: list[bool]) -> None:
    results = Results(quick=False, say=lambda _: None)
    others = {"onnxruntime, MinMax": cost(5.0, 90), "nncf, default, batch 1, .xml": cost(7.0, 80)}
    pipeline_time._claims(results, {pipeline_time.PLAIN: cost(cpu, 70), **others})
    assert [claim.met for claim in results.claims] == met
    assert "onnxruntime, MinMax" in results.claims[0].name


def test_without_another_tool_nothing_is_claimed_as_met() -> None:
    results = Results(quick=False, say=lambda _: None)
    pipeline_time._claims(results, {pipeline_time.PLAIN: cost(1.0, 1)})
    assert [claim.met for claim in results.claims] == [False]


def test_the_report_comes_after_the_file_it_is_about() -> None:
    names = [part.name for part in pipeline_time.parts("val", 64)]
    assert names.index(pipeline_time.DEFAULT) < names.index("report")
    files = [part.file for part in pipeline_time.parts("val", 64) if part.tool != "deploy-tools"]
    assert not {"int8.onnx", "fp32.onnx"} & set(files)
