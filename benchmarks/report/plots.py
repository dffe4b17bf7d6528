"""The report's plots as inline SVG, drawn by matplotlib (the [report] extra).

Text and axes are drawn in two marker colors that become CSS (`currentColor`, `var(--line)`),
so one picture fits light and dark pages. Nothing is rasterized and no font is embedded.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy_tools.errors import require

INK = "#0a0b0c"
_LINE = "#0a0b0d"
_GREY = "#808890"
_MORE, _LESS = (0.23, 0.51, 0.77), (0.86, 0.42, 0.12)
_PALETTE = (
    "#3b82c4", "#e07b14", "#2a9d6f", "#9467bd", "#d6568c", "#1aa3b8", "#a39a1f", "#a0654b",
)  # fmt: skip
_MARKERS = "osD^vP*X"
MOST_CLASSES = 20
"""Confusion matrices with more classes than this are unreadable as pictures."""


@dataclass(frozen=True)
class Point:
    """One variant in the plot of accuracy against throughput.

    rate, rate_ends: images per second; top1, top1_ends: percent.
    """

    name: str
    rate: float
    rate_ends: tuple[float, float]
    top1: float
    top1_ends: tuple[float, float]


def colors_of(names: Sequence[str], baseline: str) -> dict[str, str]:
    """Return one color a variant, the same in every plot; grey is the baseline."""
    others = [name for name in names if name != baseline]
    found = {name: _PALETTE[place % len(_PALETTE)] for place, name in enumerate(others)}
    return found | {baseline: _GREY}


def accuracy_plot(points: Sequence[Point], colors: Mapping[str, str], baseline_top1: float) -> str:
    """Top-1 against images per second.

    Horizontal bars: bootstrap interval of the rate; vertical bars: the paired interval of the
    difference from the baseline (the dashed line), which is what tells variants apart.
    """

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.axhline(baseline_top1, color=INK, linewidth=0.8, dashes=(4, 3), alpha=0.6, zorder=1)
        for place, point in enumerate(points):
            style = {"color": colors[point.name], "marker": _MARKERS[place % len(_MARKERS)]}
            axes.errorbar(
                point.rate,
                point.top1,
                xerr=_reach(point.rate, point.rate_ends),
                yerr=_reach(point.top1, point.top1_ends),
                markersize=7,
                linewidth=1.6,
                capsize=3,
                zorder=3,
                **style,
            )
            axes.plot([], [], linestyle="none", markersize=7, label=point.name, **style)
        axes.set_xlim(left=0)
        axes.margins(x=0.08, y=0.15)
        axes.set_xlabel("images per second")
        axes.set_ylabel("top-1 accuracy, %")
        _legend_above(figure, axes, len(points))

    return inline_svg(draw, (7.4, 4.1 + 0.12 * len(points)), "accuracy")


def latency_plot(
    latencies: Mapping[str, NDArray[np.float64]], colors: Mapping[str, str], name: str
) -> str:
    """One row a variant: how the time of a call (ms) is distributed, on a log axis.

    Ticks in each row mark p50, p90 and p99.
    """
    names = list(latencies)
    shown = np.concatenate([np.percentile(latencies[key], (0.1, 99.7)) for key in names])
    edges = np.geomspace(shown.min() / 1.1, shown.max() * 1.1, 141)

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for row, key in enumerate(reversed(names)):
            counts = np.histogram(latencies[key], edges)[0].astype(np.float64)
            height = np.convolve(counts, np.array([1, 2, 3, 2, 1]) / 9, "same")
            middle = np.sqrt(edges[1:] * edges[:-1])
            top = row + 0.82 * height / max(height.max(), 1.0)
            axes.fill_between(middle, row, top, color=colors[key], alpha=0.45, linewidth=0)
            axes.plot(middle, top, color=colors[key], linewidth=1.2)
            for percent, length in ((50, 0.5), (90, 0.3), (99, 0.3)):
                value = np.percentile(latencies[key], percent)
                axes.plot([value, value], [row, row + length], color=INK, linewidth=1.3)
        axes.set_xscale("log")
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(-0.08, len(names))
        axes.set_yticks(range(len(names)), list(reversed(names)))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("milliseconds a call")
        _plain_log_ticks(axes)

    return inline_svg(draw, (7.4, 1.0 + 0.55 * len(names)), name)


def confusion_plot(matrix: NDArray[np.int64], classes: Sequence[str], name: str) -> str:
    """Counts: row = true class, column = predicted. Mistakes are shaded, the diagonal is not."""
    mistakes = matrix.astype(np.float64)
    np.fill_diagonal(mistakes, 0)
    strength = np.sqrt(mistakes / max(mistakes.max(), 1.0))
    shades = np.zeros((*matrix.shape, 4))
    shades[..., :3], shades[..., 3] = _LESS, 0.85 * strength
    np.einsum("iij->ij", shades)[:] = (*_MORE, 0.28)
    return _matrix_svg(matrix, shades, classes, name, "{:d}")


def difference_plot(matrix: NDArray[np.int64], classes: Sequence[str], name: str) -> str:
    """Variant minus baseline: blue where a change helps, orange where it hurts.

    Helps: more on the diagonal, fewer beside it.
    """
    good = matrix.astype(np.float64) * (2 * np.eye(len(matrix)) - 1)
    strength = np.sqrt(np.abs(good) / max(np.abs(good).max(), 1.0))
    shades = np.zeros((*matrix.shape, 4))
    shades[..., :3] = np.where(good[..., None] >= 0, _MORE, _LESS)
    shades[..., 3] = 0.85 * strength
    return _matrix_svg(matrix, shades, classes, name, "{:+d}")


def _matrix_svg(
    matrix: NDArray[np.int64],
    shades: NDArray[np.float64],
    classes: Sequence[str],
    name: str,
    pattern: str,
) -> str:
    count = len(matrix)

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.set_xlim(-0.5, count - 0.5)
        axes.set_ylim(count - 0.5, -0.5)
        axes.set_aspect("equal")
        for row, column in zip(*np.nonzero((matrix != 0) | (shades[..., 3] > 0)), strict=True):
            _cell(axes, row, column, shades[row, column])
            if matrix[row, column]:
                text = pattern.format(int(matrix[row, column]))
                size = 8.5 if count <= 12 else 100 / count
                axes.text(column, row, text, ha="center", va="center", fontsize=size, color=INK)
        small = 9 if count <= 12 else 7
        axes.set_xticks(range(count), classes, rotation=45, ha="right", fontsize=small)
        axes.set_yticks(range(count), classes, fontsize=small)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")

    side = min(2.2 + 0.42 * count, 9.0)
    return inline_svg(draw, (side + 0.4, side), name)


def _cell(axes: Any, row: int, column: int, shade: NDArray[np.float64]) -> None:
    patches = require("matplotlib.patches", "report", "The report's plots")
    axes.add_patch(
        patches.Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=tuple(shade), linewidth=0)
    )


def _legend_above(figure: Any, axes: Any, entries: int) -> None:
    axes.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1.01),
        ncols=min(entries, 3),
        frameon=False,
        fontsize=9.5,
        handletextpad=0.5,
        columnspacing=1.6,
    )


def _plain_log_ticks(axes: Any) -> None:
    """Label 0.2, 0.5, 1, 2, 5, 10 ... instead of powers of ten."""
    ticker = require("matplotlib.ticker", "report", "The report's plots")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())


def _reach(value: float, ends: tuple[float, float]) -> list[list[float]]:
    """Distances below and above, as errorbar wants them."""
    return [[max(value - ends[0], 0.0)], [max(ends[1] - value, 0.0)]]


def inline_svg(draw: Callable[[Any], None], size: tuple[float, float], name: str) -> str:
    """Draw on a figure of `size` inches and return an <svg> element whose ids start with `name`."""
    matplotlib = require("matplotlib", "report", "The report's plots")
    figures = require("matplotlib.figure", "report", "The report's plots")
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 10.5,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": _LINE,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": _LINE,
        "grid.linewidth": 0.7,
        "xtick.color": _LINE,
        "ytick.color": _LINE,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "savefig.transparent": True,
    }
    with matplotlib.rc_context(style):
        figure = figures.Figure(figsize=size)
        draw(figure)
        out = io.StringIO()
        figure.savefig(
            out, format="svg", bbox_inches="tight", pad_inches=0.06, metadata={"Date": None}
        )
    return _inline(out.getvalue(), name)


def _inline(document: str, name: str) -> str:
    """Cut the <svg> element out of the file, make its ids its own and its colors the page's."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    return svg.replace(INK, "currentColor").replace(_LINE, "var(--line)")
