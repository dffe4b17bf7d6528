"""The study of the pipeline's own time: its parts, its step clock, its claims."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.peers.base import Job, PeerError, PeerFile
from benchmarks.studies import pipeline_export, pipeline_parts, pipeline_time
from benchmarks.studies.base import Results
from benchmarks.studies.pipeline_parts import StepClock, quantize, read_steps
from deploy_tools.errors import UserError
from deploy_tools.onnx_files import input_spec_of, load_onnx
from deploy_tools.recipe import InputTable, ModelTable


@pytest.fixture
def job(demo_onnx: Path, demo_checkpoint: Path) -> Job:
    spec = input_spec_of(load_onnx(demo_onnx), demo_onnx)
    origin = ModelTable("resnet20-cifar", str(demo_checkpoint))
    return Job(
        demo_onnx, spec, "fashion-mnist", None, "train", tuple(range(0, 800, 50)), (), origin
    )


def test_fold_and_export_gives_the_model_again(job: Job, tmp_path: Path) -> None:
    pipeline_export.quantize(job, tmp_path / "again.onnx")
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


@pytest.mark.parametrize("works", [True, False])
def test_main_goes_on_behind_a_part_that_fails(
    works: bool, monkeypatch: pytest.MonkeyPatch, shared_data: Path, tmp_path: Path
) -> None:
    """Every part through the command; what each process does has tests of its own."""

    def measure(adapter, job, path, settings, timeout_s):
        if adapter.endswith("nncf_static") or (settings.get("part") == "quantize" and not works):
            raise PeerError("it is broken.")
        if settings.get("part") == "quantize":
            path.write_bytes(job.model.read_bytes())
            pipeline_parts.steps_of(path).write_text('{"calibrate": 1.0, "round": 3.0}')
        if settings.get("part") == "report":
            names = {each.name for each in (path.parent / "predictions").iterdir()}
            assert names == {"fp32-ort.npz", "int8-static-ort.npz"}
        return PeerFile(path, 2.0, 4.0, 1 << 20, 1)

    small = InputTable((32, 32), (0.5,) * 3, (0.25,) * 3, 32, "center")
    monkeypatch.setattr(pipeline_time, "measure", measure)
    monkeypatch.setattr(pipeline_time, "PHOTOS", small)
    monkeypatch.setattr(pipeline_time, "_QUICK", ("resnet18", 8, 4))
    arguments = ["--data", str(shared_data / "flowers"), "--quick", "--json", "--images", "8"]
    done = CliRunner().invoke(pipeline_time.command, arguments)
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout.splitlines()[-1])
    parts = {row["part"]: row for row in values["rows"] if "step" not in row}
    assert len(parts) == 9
    assert ("reason" in parts[pipeline_time.DEFAULT]) == (not works)
    # Without the default's file there is nothing to report on, and that is a row too.
    assert ("int8.onnx" in parts["report"].get("reason", "")) == (not works)
    assert parts["default, batch 1, .xml"]["reason"] == "it is broken."
    steps = [row["step"] for row in values["rows"] if "step" in row]
    assert steps == (["round", "calibrate"] if works else [])
    assert [claim["met"] for claim in values["claims"]] == [True, True]


def test_the_report_comes_after_the_file_it_is_about() -> None:
    names = [part.name for part in pipeline_time.parts("val", 64)]
    assert names.index(pipeline_time.DEFAULT) < names.index("report")
    # What the claims compare is done before what takes longest.
    assert names[0] == pipeline_time.PLAIN
    assert max(
        i for i, name in enumerate(names) if name.startswith("default, batch")
    ) < names.index(pipeline_time.DEFAULT)
    files = [part.file for part in pipeline_time.parts("val", 64) if part.tool != "deploy-tools"]
    assert not {"int8.onnx", "fp32.onnx"} & set(files)
