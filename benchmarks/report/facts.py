"""The report's facts in words: title, headline, and where everything came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.report.table import interval_text, ordered, run_of

Facts = list[tuple[str, str]]


def title(report: Mapping[str, Any]) -> str:
    """Return such as "resnet20-cifar on fashion-mnist (test, 10,000 images)"."""
    data = report["data"]
    model = report["model"].get("arch") or report["model"].get("name") or "model"
    return f"{model} on {data['name']} ({data['split']}, {data['images']:,} images)"


def fastest(report: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the fastest variant (offline first) whose accuracy is known.

    Never the baseline, nor the torch module: those are what the variants are compared with.
    """
    found = [
        (run["speedup"], variant)
        for variant in ordered(report)
        if variant["id"] != report["baseline"]
        and variant["runtime"] != "torch"
        and variant["accuracy"]["status"] == "ok"
        for run in [headline_run(variant)]
        if run is not None
    ]
    return max(found, key=lambda item: item[0])[1] if found else None


def headline_run(variant: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the run that stands for a variant's speed."""
    return run_of(variant, "offline") or run_of(variant, "single-stream")


def headline(report: Mapping[str, Any]) -> str:
    """Return one sentence on the fastest variant, "" without one."""
    variant = fastest(report)
    run = None if variant is None else headline_run(variant)
    if variant is None or run is None:
        return ""
    accuracy = variant["accuracy"]
    return (
        f"Fastest: {variant['id']} runs {run['speedup']:.2f}x "
        f"{interval_text(run['speedup_ci95'], 2)} as fast as {report['baseline']} at batch "
        f"{run['batch']}; top-1 {100 * accuracy['top1']:.2f} %, a drop of "
        f"{accuracy['drop_pp']:+.2f} pp {interval_text(accuracy['drop_ci95_pp'], 2)}"
        f"{_smaller(report, variant)}."
    )


def sections(report: Mapping[str, Any]) -> list[tuple[str, Facts]]:
    """Return (heading, facts) for the model, the data, the calibration and the machine."""
    calibration = report["calibration"]
    return [
        ("Model", flatten(report["model"])),
        ("Evaluation data", flatten(report["data"])),
        (
            "Calibration",
            [("none", "nothing was calibrated")] if calibration is None else flatten(calibration),
        ),
        ("Files", _files(report)),
        ("Environment", flatten(report["environment"]) + flatten(report["tool"], "tool")),
    ]


def flatten(value: Mapping[str, Any], prefix: str = "") -> Facts:
    """Return nested tables as ("outer inner", text) pairs, in order."""
    facts: Facts = []
    for key, item in value.items():
        name = f"{prefix} {key}".strip().replace("_", " ")
        if isinstance(item, Mapping):
            facts += flatten(item, name)
        else:
            facts.append(_fact(name, item))
    return facts


def _fact(name: str, value: Any) -> tuple[str, str]:
    name, is_bytes = name.removesuffix(" bytes"), name.endswith(" bytes")
    if value is None or value == "":
        return name, "no limit" if name.startswith("limits") else "not known"
    if is_bytes:
        return name, bytes_text(value)
    if isinstance(value, bool):
        return name, "yes" if value else "no"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return name, ", ".join(str(item) for item in value) or "none"
    return name, f"{value:,}" if isinstance(value, int) and value >= 10000 else str(value)


def bytes_text(value: int) -> str:
    """Return such as "1.1 MB" or "15.6 GB" (powers of ten)."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value} bytes"


def _files(report: Mapping[str, Any]) -> Facts:
    facts: Facts = []
    for variant in ordered(report):
        if variant["file"] is None:
            continue
        size = "" if variant["size_bytes"] is None else f", {bytes_text(variant['size_bytes'])}"
        memory = variant["peak_rss_bytes"]
        peak = "" if memory is None else f", peak memory {bytes_text(memory)}"
        facts.append((variant["id"], f"{variant['file']}{size}, sha256 {variant['sha256']}{peak}"))
    return facts


def _smaller(report: Mapping[str, Any], variant: Mapping[str, Any]) -> str:
    baseline = next(v for v in report["variants"] if v["id"] == report["baseline"])
    if not baseline["size_bytes"] or not variant["size_bytes"]:
        return ""
    ratio = baseline["size_bytes"] / variant["size_bytes"]
    return f"; the file is {ratio:.1f}x smaller" if ratio >= 1.05 else ""
