"""What each layer costs in INT8: figures with their intervals, as rows and as a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report.plots import INK, inline_svg
from benchmarks.statistics import Interval, logit_sqnr_interval, wilson_interval
from deploy_tools.errors import require

_COLORS = {"layer": "#3b82c4", "branch": "#e07b14"}


@dataclass(frozen=True)
class SensitivityBar:
    """One item with only itself in INT8. kind: "layer" or "branch".

    sqnr_db: of the logits, inf where they do not change; bootstrap over images. agreement:
    fraction of the images whose class stays; Wilson's interval.
    """

    name: str
    kind: str
    sqnr_db: Interval
    agreement: Interval


def sensitivity_bars(
    reference: NDArray[np.float32],
    logits: Mapping[str, NDArray[np.float32]],
    kinds: Mapping[str, str],
    seed: int = 0,
) -> list[SensitivityBar]:
    """Return one bar an item, worst first.

    reference: logits (N, C) of the float model; logits: by item's name, on the same images.
    """
    bars = []
    for name, found in logits.items():
        same = int((found.argmax(axis=1) == reference.argmax(axis=1)).sum())
        sqnr = logit_sqnr_interval(reference, found, seed)
        bars.append(SensitivityBar(name, kinds[name], sqnr, wilson_interval(same, len(reference))))
    return sorted(bars, key=lambda bar: (bar.sqnr_db.estimate, bar.name))


def sensitivity_plot(bars: Sequence[SensitivityBar], whole_db: float, name: str) -> str:
    """Return an SVG element: horizontal bars of logit SQNR in dB with 95 % intervals, worst on top.

    whole_db: with everything in INT8, the dashed line. Items that change nothing have no bar.
    Raises MissingDependencyError without matplotlib.
    """
    shown = [bar for bar in bars if math.isfinite(bar.sqnr_db.estimate)]
    patches = require("matplotlib.patches", "report", "The plot of sensitivity")

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for row, bar in enumerate(shown):
            value = bar.sqnr_db.estimate
            axes.barh(row, value, height=0.72, color=_COLORS[bar.kind])
            high = bar.sqnr_db.high if math.isfinite(bar.sqnr_db.high) else value
            reach = [[max(value - bar.sqnr_db.low, 0.0)], [max(high - value, 0.0)]]
            axes.errorbar(value, row, xerr=reach, color=INK, linewidth=1.0, capsize=2)
        axes.axvline(whole_db, color=INK, linewidth=0.8, dashes=(4, 3))
        axes.set_yticks(range(len(shown)), [bar.name for bar in shown], fontsize=8.5)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("logit SQNR with only this in INT8, dB (dashed: everything in INT8)")
        kinds = sorted({bar.kind for bar in shown})
        handles = [patches.Patch(color=_COLORS[kind], label=kind) for kind in kinds]
        axes.legend(
            handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False
        )

    return inline_svg(draw, (7.4, 1.3 + 0.21 * len(shown)), name)


def as_file(plot: str) -> str:
    """Return an inline plot as an SVG document of its own, on white and in fixed colors."""
    head, end, body = plot.partition(">")
    fixed = f"{head}{end}<rect width='100%' height='100%' fill='#ffffff'/>{body}"
    fixed = fixed.replace("currentColor", "#1c2126").replace("var(--line)", "#d9dee3")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{fixed}\n'
