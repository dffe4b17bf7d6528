"""What a report of schema 1 must hold."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from deploy_tools.errors import ArtifactError

SCHEMA = 1
SCENARIOS = ("single-stream", "multi-stream", "server", "offline")
STATUSES = ("ok", "skipped", "failed")

_Check = tuple[Callable[[Any], bool], str]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _fraction(value: Any) -> bool:
    return _number(value) and 0 <= value <= 1


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _ends(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(_number(end) for end in value)
        and value[0] <= value[1]
    )


def _file_inside(value: Any) -> bool:
    """A relative path that stays within the report's folder."""
    if not isinstance(value, str) or not value:
        return False
    paths = (PurePosixPath(value), PureWindowsPath(value))
    return not any(path.is_absolute() or path.drive or ".." in path.parts for path in paths)


def _or_null(check: _Check) -> _Check:
    test, words = check
    return (lambda value: value is None or test(value), f"{words} or null")


TEXT: _Check = (_text, "text")
COUNT: _Check = (_count, "a whole number from 0 on")
NUMBER: _Check = (_number, "a number")
POSITIVE: _Check = (_positive, "a number above 0")
FRACTION: _Check = (_fraction, "a number from 0 to 1")
ENDS: _Check = (_ends, "[low, high]")
FILE: _Check = (_file_inside, "a relative path inside the report's folder")
TABLE: _Check = (lambda value: isinstance(value, Mapping), "a table")
LIST: _Check = (lambda value: isinstance(value, list), "a list")
FLAG: _Check = (lambda value: isinstance(value, bool), "true or false")
ID: _Check = (
    lambda value: (
        isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9][\w.+-]*", value) is not None
    ),
    "a name of letters, digits, dots and dashes",
)

_REPORT = {
    "tool": TABLE,
    "model": TABLE,
    "data": TABLE,
    "calibration": _or_null(TABLE),
    "environment": TABLE,
    "command": TEXT,
    "baseline": ID,
    "variants": LIST,
}
_DATA = {"name": TEXT, "split": TEXT, "images": COUNT, "sha256": TEXT}
_CALIBRATION = {"images": COUNT, "sha256": TEXT, "choose": TEXT, "seed": _or_null(COUNT)}
_VARIANT = {
    "id": ID,
    "precision": TEXT,
    "method": _or_null(TEXT),
    "target": _or_null(TEXT),
    "runtime": TEXT,
    "provider": _or_null(TEXT),
    "file": _or_null(FILE),
    "sha256": _or_null(TEXT),
    "size_bytes": _or_null(COUNT),
    "build": TABLE,
    "accuracy": TABLE,
    "speed": TABLE,
    "peak_rss_bytes": _or_null(COUNT),
}
_ACCURACY = {
    "images": COUNT,
    "top1": FRACTION,
    "top1_ci95": ENDS,
    "top5": _or_null(FRACTION),
    "drop_pp": NUMBER,
    "drop_ci95_pp": ENDS,
    "mcnemar_p": FRACTION,
    "agreement": FRACTION,
    "agreement_ci95": ENDS,
    "logit_sqnr_db": _or_null(NUMBER),
    "simulated": FLAG,
    "predictions": _or_null(FILE),
}
_RUN = {
    "scenario": (lambda value: value in SCENARIOS, f"one of {', '.join(SCENARIOS)}"),
    "batch": POSITIVE,
    "threads": COUNT,
    "streams": COUNT,
    "target_rate": _or_null(POSITIVE),
    "latency_limit_ms": _or_null(POSITIVE),
    "sample_count": POSITIVE,
    "p50_ms": POSITIVE,
    "p90_ms": POSITIVE,
    "p99_ms": POSITIVE,
    "images_per_s": POSITIVE,
    "speedup": POSITIVE,
    "speedup_ci95": ENDS,
    "samples": _or_null(FILE),
}

# Where no rate of arrivals keeps the latency limit, and at a given rate, there are none of these.
_SERVER_RUN = _RUN | {
    key: _or_null(_RUN[key]) for key in ("images_per_s", "speedup", "speedup_ci95")
}


def validate_report(report: object) -> None:
    """Raise ArtifactError, naming the first wrong key, where `report` is not of schema 1.

    Keys beyond the schema are allowed. Numbers must be finite everywhere.
    """
    if not isinstance(report, Mapping):
        raise ArtifactError("the report is not a table.")
    if report.get("schema") != SCHEMA:
        raise ArtifactError(
            f"the report has schema {report.get('schema')!r}, this version reads {SCHEMA}.",
            "Use the version that wrote it, or make the report again.",
        )
    _check_finite(report, "report")
    _check(report, _REPORT, "report")
    _check(report["data"], _DATA, "report data")
    if report["calibration"] is not None:
        _check(report["calibration"], _CALIBRATION, "report calibration")
    ids = [_check_variant(variant, number) for number, variant in enumerate(report["variants"])]
    for name in ids:
        if ids.count(name) > 1:
            raise ArtifactError(f'report variants has "{name}" twice.')
    if report["baseline"] not in ids:
        raise ArtifactError(
            f'report baseline is "{report["baseline"]}", which is none of the variants: '
            f"{', '.join(ids) or 'there are none'}."
        )


def _check_variant(variant: object, number: int) -> str:
    where = f"report variants[{number}]"
    if not isinstance(variant, Mapping):
        raise ArtifactError(f"{where} must be a table.")
    _check(variant, _VARIANT, where)
    name = str(variant["id"])
    where = f'report variant "{name}"'
    for stage in ("build", "accuracy", "speed"):
        _check_status(variant[stage], f"{where} {stage}")
    if variant["accuracy"]["status"] == "ok":
        _check(variant["accuracy"], _ACCURACY, f"{where} accuracy")
    if variant["speed"]["status"] == "ok":
        _check(variant["speed"], {"runs": LIST}, f"{where} speed")
        for place, run in enumerate(variant["speed"]["runs"]):
            _check_run(run, f"{where} speed.runs[{place}]")
    return name


def _check_run(run: object, where: str) -> None:
    if not isinstance(run, Mapping):
        raise ArtifactError(f"{where} must be a table.")
    _check(run, _SERVER_RUN if run.get("scenario") == "server" else _RUN, where)
    if not run["p50_ms"] <= run["p90_ms"] <= run["p99_ms"]:
        raise ArtifactError(f"{where} has percentiles that fall: p50, p90 and p99 must rise.")


def _check_status(table: Mapping[str, Any], where: str) -> None:
    status = table.get("status")
    if status not in STATUSES:
        raise ArtifactError(
            f"{where} status is {status!r}; it must be one of {', '.join(STATUSES)}."
        )
    reason = table.get("reason")
    if not isinstance(reason, str) or (status != "ok" and not reason.strip()):
        raise ArtifactError(f"{where} is {status} and gives no reason.")


def _check(table: Mapping[str, Any], fields: Mapping[str, _Check], where: str) -> None:
    for key, (test, words) in fields.items():
        if key not in table:
            raise ArtifactError(f"{where} lacks {key}.")
        if not test(table[key]):
            raise ArtifactError(f"{where} {key} must be {words}, got {table[key]!r}.")


def _check_finite(value: object, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ArtifactError(f"{where} is {value}, and JSON has no such number.")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_finite(item, f"{where} {key}")
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            _check_finite(item, f"{where}[{place}]")
