"""The report's second table: the scenarios that the first one has no columns for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.report.table import DASH, Report, interval_text, ordered, short

HEADERS = (
    "variant", "scenario", "images\na query", "p99 limit\nms", "p50 ms\n[95 % CI]",
    "p90 ms\n[95 % CI]", "p99 ms\n[95 % CI]", "images/s\n[95 % CI]", "speedup\n[95 % CI]", "J/image\n[95 % CI]",
)  # fmt: skip
LEGEND = (
    "multi-stream: one query of several images after the other. server: single images arrive at "
    "random (Poisson); images/s is the largest rate of arrivals that keeps p99 within the limit (at "
    "a given rate: what was answered a second), and latency counts from the arrival. end to end: "
    "from image file to label, decoding included. J: energy of the CPU packages and the memory."
)


def scenario_rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """Return headers and rows of text; no rows where the first table shows every run.

    It shows multi-stream, server and end-to-end runs, and every run where energy was counted. A
    cell may have two lines: the figure, and its 95 % interval.
    """
    runs = [
        (variant, run) for variant in ordered(report) for run in variant["speed"].get("runs", [])
    ]
    counted = any(run.get("joules_per_image") is not None for _, run in runs)
    rows = [
        _row(variant, run, run_is_baseline=variant["id"] == report["baseline"])
        for variant, run in runs
        if counted or run.get("end_to_end") or run["scenario"] in ("multi-stream", "server")
    ]
    headers = list(HEADERS)
    if not counted:
        headers, rows = headers[:-1], [row[:-1] for row in rows]
    return headers, rows


def _row(variant: Mapping[str, Any], run: Mapping[str, Any], run_is_baseline: bool) -> list[str]:
    limit = run["latency_limit_ms"]
    speedup = "1x" if run_is_baseline and run["speedup"] else _cell(run, "speedup", "x", 2)
    return [
        variant["id"],
        run["scenario"] + (", end to end" if run.get("end_to_end") else ""),
        str(run["batch"]),
        DASH if limit is None else f"{limit:g}",
        _cell(run, "p50_ms", "", 2),
        _cell(run, "p90_ms", "", 2),
        _cell(run, "p99_ms", "", 2),
        _rate(run),
        speedup,
        _cell(run, "joules_per_image", "", 3),
    ]


def _rate(run: Mapping[str, Any]) -> str:
    """Images per second; that the limit is missed, at every rate or at the one that was given."""
    if not run["images_per_s"]:
        return "limit missed"
    cell = _cell(run, "images_per_s", "", 0)
    return f"limit missed at {cell}" if run["latency_limit_met"] is False else cell


def _cell(run: Mapping[str, Any], key: str, unit: str, digits: int) -> str:
    value = run.get(key)
    if value is None:
        return DASH
    ends: Sequence[float] | None = run.get(f"{key}_ci95")
    text = f"{value:.{digits}f}" if unit or digits == 3 else short(value)
    return f"{text}{unit}" if ends is None else f"{text}{unit}\n{interval_text(ends, digits)}"
