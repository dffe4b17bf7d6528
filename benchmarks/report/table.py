"""The report's one table, as text: what a person reads at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]

DASH = "-"

_LEAST_IMPORTANT = (6, 4, 7, 1, 5, 8)
"""Columns to leave out first: p99, agreement, speedup at batch 1, size, p50, images/s."""


def summary_rows(report: Report, width: int | None = None) -> tuple[list[str], list[list[str]]]:
    """Return the table's headers and one row of text a variant, the baseline first.

    A cell may have two lines (joined by a newline): the figure, and under it its 95 % interval
    or its companion. The column "status" is there only where something was not done.
    width: characters that the table may take (with 2 between columns); the least important
    columns are left out until it fits. The report's files always hold all of them.
    """
    batch = _offline_batch(report)
    headers = [
        "variant\nruns on",
        "size\nMB",
        "top-1 %\n[95 % CI]",
        "drop, pp\n[95 % CI]",
        "agree %\nSQNR dB",
        "batch 1\np50 ms",
        "batch 1\np99 ms",
        "speedup\nbatch 1",
        f"images/s\nbatch {batch}",
        f"speedup\nbatch {batch}",
        "status",
    ]
    rows = [_row(variant, report["baseline"]) for variant in ordered(report)]
    shown = list(range(len(headers)))
    if all(row[-1] == "ok" for row in rows):
        shown.pop()
    for column in _LEAST_IMPORTANT:
        if width is None or _width([headers, *rows], shown) <= width:
            break
        shown.remove(column)
    return [headers[i] for i in shown], [[row[i] for i in shown] for row in rows]


def ordered(report: Report) -> list[Mapping[str, Any]]:
    """Return the variants with the baseline first, the others as they come."""
    return sorted(report["variants"], key=lambda variant: bool(variant["id"] != report["baseline"]))


def run_of(variant: Mapping[str, Any], scenario: str) -> Mapping[str, Any] | None:
    """Return the variant's first run in a scenario, None where there is none.

    Runs from image file to label are left out: their times hold more than the model's.
    """
    runs: Sequence[Mapping[str, Any]] = variant["speed"].get("runs", [])
    return next(
        (run for run in runs if run["scenario"] == scenario and not run.get("end_to_end")), None
    )


def runs_on(variant: Mapping[str, Any]) -> str:
    """Return such as "onnxruntime int8": the runtime and the precision it truly ran in."""
    precision = variant.get("runs_in") or variant["precision"]
    return f"{variant['runtime']} {precision}"


def not_done(report: Report) -> list[tuple[str, str, str, str]]:
    """Return (variant, stage, status, reason) for everything skipped or failed."""
    return [
        (variant["id"], stage, variant[stage]["status"], variant[stage]["reason"])
        for variant in ordered(report)
        for stage in ("build", "accuracy", "speed")
        if variant[stage]["status"] != "ok"
    ]


def notes(report: Report) -> list[tuple[str, str]]:
    """Return (variant, note): simulated accuracy, and machines too noisy to trust.

    What is true of a whole scenario is said once, at its first variant.
    """
    found: list[tuple[str, str]] = []
    for variant in ordered(report):
        if variant["accuracy"].get("simulated"):
            found.append((variant["id"], "its accuracy was simulated on another runtime"))
        for run in variant["speed"].get("runs", []):
            text = f"{run['scenario']}: {run.get('note')}"
            if run.get("note") and text not in [note for _, note in found]:
                found.append((variant["id"], text))
    return found


def interval_text(ends: Sequence[float | None], digits: int, scale: float = 1.0) -> str:
    """Return "[low, high]"; an end that is null in the report is infinite."""
    low, high = ("inf" if end is None else f"{scale * end:.{digits}f}" for end in ends)
    return f"[{low}, {high}]"


def _row(variant: Mapping[str, Any], baseline: str) -> list[str]:
    is_baseline = variant["id"] == baseline
    single, offline = run_of(variant, "single-stream"), run_of(variant, "offline")
    size = variant["size_bytes"]
    return [
        f"{variant['id']}\n{runs_on(variant)}",
        DASH if size is None else f"{size / 1e6:.2f}" if size < 1e7 else f"{size / 1e6:.1f}",
        *_accuracy_cells(variant["accuracy"], is_baseline),
        DASH if single is None else short(single["p50_ms"]),
        DASH if single is None else short(single["p99_ms"]),
        _speedup(single, is_baseline),
        DASH if offline is None else f"{short(offline['images_per_s'])}",
        _speedup(offline, is_baseline),
        _status(variant),
    ]


def _accuracy_cells(accuracy: Mapping[str, Any], is_baseline: bool) -> list[str]:
    if accuracy["status"] != "ok":
        return [DASH, DASH, DASH]
    mark = " (sim.)" if accuracy["simulated"] else ""
    top1 = f"{100 * accuracy['top1']:.2f}{mark}\n{interval_text(accuracy['top1_ci95'], 2, 100)}"
    if is_baseline:
        return [top1, "baseline", "baseline"]
    sqnr = accuracy["logit_sqnr_db"]
    return [
        top1,
        f"{accuracy['drop_pp']:+.2f}\n{interval_text(accuracy['drop_ci95_pp'], 2)}",
        f"{100 * accuracy['agreement']:.2f}\n{'identical' if sqnr is None else f'{sqnr:.1f} dB'}",
    ]


def _speedup(run: Mapping[str, Any] | None, is_baseline: bool) -> str:
    if run is None:
        return DASH
    if is_baseline:
        return "1x"
    return f"{run['speedup']:.2f}x\n{interval_text(run['speedup_ci95'], 2)}"


def _status(variant: Mapping[str, Any]) -> str:
    """One word for a variant's three stages; `not_done` tells the reasons."""
    found = {variant[stage]["status"] for stage in ("build", "accuracy", "speed")}
    if found == {"ok"}:
        return "ok"
    return "failed" if "failed" in found else "partly" if "ok" in found else "skipped"


def _width(table: Sequence[Sequence[str]], columns: Sequence[int]) -> int:
    widths = [max(len(line) for row in table for line in row[i].split("\n")) for i in columns]
    return sum(widths) + 2 * len(widths)


def _offline_batch(report: Report) -> str:
    runs = [run_of(variant, "offline") for variant in report["variants"]]
    batches = sorted({str(run["batch"]) for run in runs if run is not None})
    return "/".join(batches) or "n"


def short(value: float) -> str:
    """Three significant digits or more, without an exponent."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0}f}"
