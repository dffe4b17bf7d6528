"""The plot and the table of the study `growth`, from its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.report.plots import INK, colors_of, inline_svg

Row = Mapping[str, Any]

_SIZE = (11.0, 6.4)
_STYLE = "<style>svg{color:#24292f;--line:#c8ced6;background:#ffffff}</style>"
_PANELS = (("cpu_seconds", "CPU seconds"), ("peak_mib", "peak memory, MiB"))
_MARKERS = "osD^vP*X"


def plot(rows: Sequence[Row], source: str = "") -> str:
    """Return a standalone SVG: cost against size, both logarithmic, a panel an axis of growth.

    rows: of the study, with axis, stage, size, cpu_seconds and peak_mib. The dashed line is what
    is exactly linear. source: what made the rows, as the picture's description.
    """
    axes_of_growth = list(dict.fromkeys(row["axis"] for row in rows))
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    colors = colors_of(stages, "")

    def draw(figure: Any) -> None:
        panels = figure.subplots(len(_PANELS), len(axes_of_growth), squeeze=False)
        for column, axis in enumerate(axes_of_growth):
            own = [row for row in rows if row["axis"] == axis]
            for line, (key, label) in enumerate(_PANELS):
                _panel(panels[line][column], own, key, colors, stages)
                panels[line][column].set_ylabel(label if column == 0 else "")
            panels[-1][column].set_xlabel(axis)
        handles = [
            panels[0][0].plot([], [], color=colors[stage], marker=_marker(stages, stage))[0]
            for stage in stages
        ]
        figure.legend(handles, stages, loc="upper center", ncols=4, frameon=False)
        figure.subplots_adjust(top=0.86, wspace=0.24, hspace=0.22)

    svg = inline_svg(draw, _SIZE, "growth")
    end = svg.index(">") + 1
    return f"{svg[:end]}<desc>{escape(source)}</desc>{_STYLE}{svg[end:]}"


def _panel(
    axes: Any, rows: Sequence[Row], key: str, colors: Mapping[str, str], stages: Sequence[str]
) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [row for row in rows if row["stage"] == stage]
        sizes, costs = [row["size"] for row in own], [row[key] for row in own]
        axes.plot(sizes, costs, color=colors[stage], marker=_marker(stages, stage), markersize=4)
    if key == "cpu_seconds" and rows:
        ends = min(row["size"] for row in rows), max(row["size"] for row in rows)
        start = min(row[key] for row in rows)
        guide = [start, start * ends[1] / ends[0]]
        axes.plot(ends, guide, color=INK, linewidth=0.8, dashes=(4, 3), alpha=0.6, zorder=1)


def _marker(stages: Sequence[str], stage: str) -> str:
    return _MARKERS[stages.index(stage) % len(_MARKERS)]


def table(rows: Sequence[Row], fits: Sequence[Row]) -> str:
    """Return Markdown: a line for each axis and stage, the costs by size, the fit."""
    lines: list[str] = []
    for axis in dict.fromkeys(row["axis"] for row in rows):
        own = [row for row in rows if row["axis"] == axis]
        sizes = list(dict.fromkeys(row["size"] for row in own))
        lines += [f"### By {axis}", "", *_lines(own, sizes, fits), ""]
    return "\n".join(lines).rstrip() + "\n"


def _lines(own: Sequence[Row], sizes: Sequence[int], fits: Sequence[Row]) -> Iterator[str]:
    head = ["stage", "figure", *(f"{size:,}" for size in sizes), "per unit", "exponent"]
    yield f"| {' | '.join(head)} |"
    yield f"|{'|'.join(['---', '---', *['---:'] * (len(sizes) + 2)])}|"
    for stage in dict.fromkeys(row["stage"] for row in own):
        for key, label in _PANELS:
            found = {row["size"]: row[key] for row in own if row["stage"] == stage}
            cells = [f"{found[size]:.3g}" if size in found else "" for size in sizes]
            fit = next(
                (f for f in fits
                 if (f["axis"], f["stage"], f["figure"]) == (own[0]["axis"], stage, key)),
                None,
            )  # fmt: skip
            last = [f"{fit['slope']:.3g}", f"{fit['exponent']:.2f}"] if fit else ["", ""]
            yield f"| {' | '.join([stage, label, *cells, *last])} |"
