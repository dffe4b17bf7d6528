"""The figures of report.html: which plots there are, from which files, with which captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy import confusion_matrix
from benchmarks.predictions import Predictions
from benchmarks.report.curves import qat_plot
from benchmarks.report.facts import fastest
from benchmarks.report.plots import (
    MOST_CLASSES,
    Point,
    accuracy_plot,
    colors_of,
    confusion_plot,
    difference_plot,
    latency_plot,
)
from benchmarks.report.table import ordered, run_of
from benchmarks.samples import read_samples

Report = Mapping[str, Any]

_MOST_PAIRS = 15


def figures(report: Report, folder: Path) -> str:
    """Return the plots as HTML, without those whose data are missing.

    Raises MissingDependencyError where there is something to draw and no matplotlib.
    """
    names = [variant["id"] for variant in ordered(report)]
    colors = colors_of(names, report["baseline"])
    return "\n".join(
        [
            _accuracy(report, colors),
            _latency(report, folder, colors),
            _fine_tuning(report),
            _confusion(report, folder),
        ]
    )


def _accuracy(report: Report, colors: Mapping[str, str]) -> str:
    """Accuracy against throughput, in the scenario that has it (offline first)."""
    variants = [variant for variant in ordered(report) if variant["accuracy"]["status"] == "ok"]
    baseline = next((v for v in variants if v["id"] == report["baseline"]), None)
    if baseline is None:
        return ""
    for scenario in ("offline", "single-stream", "multi-stream", "server"):
        points = [
            _point(variant, run, baseline)
            for variant in variants
            for run in [run_of(variant, scenario)]
            if run is not None and run["images_per_s"] is not None
        ]
        if len(points) > 1:
            svg = accuracy_plot(points, colors, 100 * baseline["accuracy"]["top1"])
            caption = (
                f"Scenario {scenario}. Up and right is better. Vertical bars: the paired 95 % interval "
                "of the difference from the baseline (dashed line). Horizontal bars: 95 % interval "
                "of the median rate."
            )
            return f"<h2>Accuracy against throughput</h2>{_figure(svg, caption, 'wide')}"
    return ""


def _point(
    variant: Mapping[str, Any], run: Mapping[str, Any], baseline: Mapping[str, Any]
) -> Point:
    """The baseline has no bar: its difference from itself is zero."""
    rate, top1 = run["images_per_s"], 100 * variant["accuracy"]["top1"]
    low, high = run.get("images_per_s_ci95", (rate, rate))
    ends = (top1, top1)
    if variant["id"] != baseline["id"]:
        drop = variant["accuracy"]["drop_ci95_pp"]
        ends = (
            100 * baseline["accuracy"]["top1"] - drop[1],
            100 * baseline["accuracy"]["top1"] - drop[0],
        )
    return Point(variant["id"], rate, (low, high), top1, ends)


def _latency(report: Report, folder: Path, colors: Mapping[str, str]) -> str:
    found: dict[tuple[str, int, bool], dict[str, NDArray[np.float64]]] = {}
    for variant in ordered(report):
        for path in sorted({run["samples"] for run in variant["speed"].get("runs", [])} - {None}):
            if not (folder / path).is_file():
                continue
            for samples in read_samples(folder / path):
                rows = found.setdefault((samples.scenario, samples.batch, samples.end_to_end), {})
                rows[variant["id"]] = samples.latencies_ms()
    plots = [
        _figure(
            latency_plot(rows, colors, f"latency-{scenario}-{batch}{'-files' if files else ''}"),
            f"{scenario}{', end to end' if files else ''}, batch {batch}: the time of one "
            f"{'query from its arrival on' if scenario == 'server' else 'call'}. "
            "Ticks: p50, p90, p99.",
            "wide",
        )
        for (scenario, batch, files), rows in found.items()
    ]
    return f"<h2>Latency distributions</h2>{''.join(plots)}" if plots else ""


def _fine_tuning(report: Report) -> str:
    plots = [
        _figure(
            qat_plot(variant["qat"]["curve"], f"qat-{place}"),
            f"<b>{escape(variant['id'])}</b>: {variant['qat']['training_images']:,} images train, "
            f"{variant['qat']['validation_images']:,} held out of them choose the epoch (dashed).",
            "wide",
        )
        for place, variant in enumerate(ordered(report))
        if "qat" in variant
    ]
    return f"<h2>Fine-tuning</h2>{''.join(plots)}" if plots else ""


def _confusion(report: Report, folder: Path) -> str:
    matrices = {
        variant["id"]: matrix
        for variant in ordered(report)
        for matrix in [_matrix(variant, folder)]
        if matrix is not None
    }
    baseline = matrices.pop(report["baseline"], None)
    if baseline is None:
        return ""
    classes = _class_names(report, len(baseline))
    best = fastest(report)
    changes = {
        name: matrices[name] - baseline
        for name in sorted(matrices, key=lambda name: best is None or name != best["id"])
        if matrices[name].shape == baseline.shape
    }
    if len(baseline) > MOST_CLASSES:
        return _pairs(report["baseline"], baseline, classes)
    name = escape(report["baseline"])
    parts = [
        _figure(
            confusion_plot(baseline, classes, "confusion-baseline"),
            f"<b>{name}</b>, images. Rows: true class; columns: predicted. Mistakes in orange.",
        )
    ]
    blocks = [
        _figure(
            difference_plot(change, classes, f"confusion-{place}"),
            f"<b>{escape(variant)}</b> minus {name}, images. Blue helps, orange hurts"
            + ("." if change.any() else "; here nothing changes."),
        )
        for place, (variant, change) in enumerate(changes.items())
    ]
    more = f'<details><summary>{len(blocks) - 1} more</summary><div class="pair">{"".join(blocks[1:])}</div></details>'
    return (
        f'<h2>Confusion</h2><div class="pair">{"".join(parts + blocks[:1])}</div>'
        f"{more if len(blocks) > 1 else ''}"
    )


def _matrix(variant: Mapping[str, Any], folder: Path) -> NDArray[np.int64] | None:
    path = variant["accuracy"].get("predictions")
    if not path or not (folder / path).is_file():
        return None
    return confusion_matrix(Predictions.load(folder / path))


def _class_names(report: Report, count: int) -> list[str]:
    names = report["model"].get("classes") or report["data"].get("classes") or []
    if isinstance(names, Sequence) and not isinstance(names, str) and len(names) == count:
        return [str(name) for name in names]
    return [str(index) for index in range(count)]


def _pairs(baseline: str, matrix: NDArray[np.int64], classes: Sequence[str]) -> str:
    """The most confused pairs, where a matrix would be too large to read."""
    mistakes = matrix.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:_MOST_PAIRS]
    rows = "".join(
        f"<tr><td>{escape(classes[row])}</td><td>{escape(classes[column])}</td>"
        f"<td>{mistakes[row, column]}</td></tr>"
        for row, column in zip(*np.unravel_index(order, mistakes.shape), strict=True)
        if mistakes[row, column]
    )
    return (
        f"<h2>Most confused classes of {escape(baseline)}</h2>"
        "<table><thead><tr><th>true</th><th>predicted</th><th>images</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def _figure(svg: str, caption: str, kind: str = "") -> str:
    return (
        f'<figure class="{kind}"><div class="scroll">{svg}</div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )
