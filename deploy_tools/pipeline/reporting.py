"""Put what a run found into report.json, report.html and report.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.accuracy import Accuracy
from benchmarks.environment import describe_environment
from benchmarks.report import build_report, variant_entry, write_report
from benchmarks.speed import SpeedRun
from calibration.select import Selection
from deploy_tools.data.source import source_hash
from deploy_tools.pipeline.variants import BASELINE
from deploy_tools.version import __version__

if TYPE_CHECKING:
    from deploy_tools.pipeline.making import Outcome, Run


def report_of(run: Run) -> dict[str, Any]:
    """Write the three reports and return the one that programs read."""
    directory = run.runner.directory
    report = build_report(
        tool={"name": "deploy-tools", "version": __version__},
        model=_model(run),
        data={
            "name": run.evaluation.name,
            "split": run.evaluation.split,
            "images": len(run.evaluation),
            "sha256": source_hash(run.evaluation),
            "classes": list(run.evaluation.classes),
        },
        calibration=_calibration(run),
        environment=describe_environment(),
        baseline=BASELINE,
        variants=[_entry(outcome, _course(run, outcome)) for outcome in run.outcomes],
        command=run.command,
    )
    write_report(report, directory.root)
    return report


def _model(run: Run) -> dict[str, Any]:
    artifacts = run.runner.directory.artifacts
    return {
        "arch": run.recipe.model.arch,
        "num_classes": len(run.spec.labels) or run.recipe.model.num_classes,
        "weights": "random" if run.recipe.model.random_weights else "trained",
        "input_spec": run.spec.to_dict(),
        "fuse": _short(artifacts["fused"].notes),
        "export": artifacts["fp32.onnx"].notes,
    }


def _short(fold: dict[str, Any]) -> dict[str, Any]:
    """Return the fold's proof with the number of pairs in place of their names."""
    return fold | {"folded": len(fold["folded"])} if fold else fold


def _calibration(run: Run) -> dict[str, Any] | None:
    if "selection" not in run.runner.directory.artifacts:
        return None
    selection = Selection.load(run.runner.directory.path("calibration/selection.json"))
    return {
        "images": len(selection),
        "sha256": selection.content_hash,
        "choose": selection.choose,
        "seed": selection.seed,
    }


def _course(run: Run, outcome: Outcome) -> dict[str, Any] | None:
    """Return the course of a fine-tuning, None for another variant or one that was not made."""
    name = f"{outcome.variant.id}-qat"
    artifact = run.runner.directory.artifacts.get(name)
    made = outcome.variant.method == "qat" and outcome.artifact is not None
    return artifact.notes if made and artifact is not None else None


def _entry(outcome: Outcome, qat: dict[str, Any] | None) -> dict[str, Any]:
    variant, artifact = outcome.variant, outcome.engine or outcome.artifact
    status = outcome.status
    accuracy: Accuracy | dict[str, str] = outcome.result or status.get(
        "accuracy", {"status": "skipped", "reason": "it was not built"}
    )
    speed: list[SpeedRun] | dict[str, str] = outcome.runs or status["speed"]
    measured, session = isinstance(accuracy, Accuracy), outcome.session
    return variant_entry(
        id=variant.id,
        precision=variant.precision,
        method=variant.method,
        target=variant.target,
        runtime=variant.runtime,
        provider=None if variant.engine and variant.simulated else session.get("provider"),
        accuracy=accuracy,
        speed=speed,
        build=status["build"],
        file=artifact.file if artifact else None,
        sha256=artifact.sha256 if artifact else None,
        size_bytes=artifact.size_bytes if artifact else None,
        runs_in=_runs_in(outcome),
        simulated=bool(variant.simulated),
        predictions=f"predictions/{variant.id}.npz" if measured else None,
        samples=f"samples/{variant.id}.jsonl" if outcome.runs else None,
        peak_rss_bytes=outcome.peak_rss_bytes,
        qat=qat,
    )


def _runs_in(outcome: Outcome) -> str | None:
    """Return what the variant computes in: for an engine, what its build log says."""
    if outcome.engine is not None:
        return str(outcome.engine.notes["precision"])
    simulated = outcome.variant.engine and outcome.variant.simulated
    return None if simulated else outcome.session.get("runs_in")
