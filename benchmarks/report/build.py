"""Put a report together from the values that the stages returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.accuracy import Accuracy
from benchmarks.report.schema import SCHEMA, validate_report
from benchmarks.speed import SpeedRun

Status = Mapping[str, Any]


def ok() -> dict[str, str]:
    """The status of what was done."""
    return {"status": "ok", "reason": ""}


def skipped(reason: str) -> dict[str, str]:
    """The status of what cannot be done here, and why."""
    return {"status": "skipped", "reason": reason}


def failed(reason: str) -> dict[str, str]:
    """The status of what was tried and went wrong, and how."""
    return {"status": "failed", "reason": reason}


def variant_entry(
    *,
    id: str,
    precision: str,
    method: str | None,
    target: str | None,
    runtime: str,
    provider: str | None,
    accuracy: Accuracy | Status,
    speed: Sequence[SpeedRun] | Status,
    build: Status | None = None,
    file: str | None = None,
    sha256: str | None = None,
    size_bytes: int | None = None,
    runs_in: str | None = None,
    simulated: bool = False,
    predictions: str | None = None,
    samples: str | None = None,
    peak_rss_bytes: int | None = None,
    qat: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return one entry of a report's "variants".

    accuracy, speed, build: the result, or `skipped(reason)` / `failed(reason)`.
    precision: what was asked for; runs_in: what the runtime truly computes in.
    simulated: the accuracy comes from another runtime than the one the variant is made for.
    predictions, samples: paths relative to the report's folder.
    qat: of a fine-tuned variant what `QatResult.to_dict` returns, its curve.
    """
    course = {"qat": dict(qat)} if qat else {}
    return {
        "id": id,
        "precision": precision,
        "runs_in": runs_in,
        "method": method,
        "target": target,
        "runtime": runtime,
        "provider": provider,
        "file": file,
        "sha256": sha256,
        "size_bytes": size_bytes,
        "build": dict(build or ok()),
        "accuracy": _accuracy(accuracy, simulated, predictions),
        "speed": _speed(speed, samples),
        "peak_rss_bytes": peak_rss_bytes,
    } | course


def build_report(
    *,
    tool: Mapping[str, Any],
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    calibration: Mapping[str, Any] | None,
    environment: Mapping[str, Any],
    baseline: str,
    variants: Sequence[Mapping[str, Any]],
    command: str,
) -> dict[str, Any]:
    """Return the report of schema 1, checked.

    tool: {"name", "version"}; data: {"name", "split", "images", "sha256"};
    calibration: {"images", "sha256", "choose", "seed"}, None where nothing was calibrated;
    environment: what `describe_environment` returns; baseline: the id of a variant;
    variants: from `variant_entry`; command: what makes this report again.
    Raises ArtifactError where the result would not be a valid report.
    """
    report = {
        "schema": SCHEMA,
        "tool": dict(tool),
        "model": dict(model),
        "data": dict(data),
        "calibration": None if calibration is None else dict(calibration),
        "environment": dict(environment),
        "command": command,
        "baseline": baseline,
        "variants": [dict(variant) for variant in variants],
    }
    validate_report(report)
    return report


def _accuracy(
    accuracy: Accuracy | Status, simulated: bool, predictions: str | None
) -> dict[str, Any]:
    if not isinstance(accuracy, Accuracy):
        return dict(accuracy)
    return ok() | accuracy.to_dict() | {"simulated": simulated, "predictions": predictions}


def _speed(speed: Sequence[SpeedRun] | Status, samples: str | None) -> dict[str, Any]:
    if isinstance(speed, Mapping):
        return {"runs": []} | dict(speed)
    return ok() | {"runs": [run.to_dict(samples) for run in speed]}
