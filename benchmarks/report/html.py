"""report.html: one self-contained file; it works offline, in light and dark, and on a phone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from benchmarks.report.facts import Facts, headline, sections, title
from benchmarks.report.figures import figures
from benchmarks.report.scenarios import LEGEND, scenario_rows
from benchmarks.report.table import not_done, notes, ordered, summary_rows
from deploy_tools.errors import MissingDependencyError

_LEGEND = (
    "Drop: percentage points of top-1, baseline minus variant, on the same images, with Tango's "
    "paired score interval. Agreement: how often both name the same class. SQNR: energy of the "
    "baseline's logits over that of the difference. Speedup: median over interleaved rounds of "
    "the ratio to the baseline, with a bootstrap interval. All intervals are 95 %."
)


def html_from_report(report: Mapping[str, Any], folder: Path) -> str:
    """Return the report as one HTML page.

    folder: where the predictions and samples are that the plots show. Without matplotlib the
    page holds the tables, and a line that names the extra to install.
    """
    try:
        plots = figures(report, folder)
    except MissingDependencyError as error:
        plots = f'<p class="notice">Plots are left out. {escape(str(error))}</p>'
    body = "\n".join(
        [
            f"<h1>{escape(title(report))}</h1>",
            f'<p class="soft">{escape(_subtitle(report))}</p>',
            _headline(report),
            _summary(report),
            f"<p><small>{escape(_LEGEND)}</small></p>",
            _scenarios(report),
            _list("Not done", [_not_done_line(*item) for item in not_done(report)]),
            _list("Notes", [f"<b>{escape(v)}</b>: {escape(n)}" for v, n in notes(report)]),
            plots,
            "<h2>Make it again</h2>",
            f"<pre>{escape(report['command'])}</pre>",
            *(_facts(name, facts) for name, facts in sections(report)),
        ]
    )
    style = resources.files("benchmarks.report").joinpath("report.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title(report))}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _subtitle(report: Mapping[str, Any]) -> str:
    tool, count = report["tool"], len(report["variants"])
    name = f"{tool.get('name', '')} {tool.get('version', '')}".strip()
    return f"{count} variants, compared with {report['baseline']}. Measured by {name}."


def _headline(report: Mapping[str, Any]) -> str:
    text = headline(report)
    return f'<p class="headline">{escape(text)}</p>' if text else ""


def _summary(report: Mapping[str, Any]) -> str:
    headers, rows = summary_rows(report)
    head = "".join(f"<th>{_lines(cell)}</th>" for cell in headers)
    body = []
    for variant, row in zip(ordered(report), rows, strict=True):
        mark = ' class="baseline"' if variant["id"] == report["baseline"] else ""
        body.append(f"<tr{mark}>{''.join(f'<td>{_lines(cell)}</td>' for cell in row)}</tr>")
    return (
        f'<div class="scroll"><table class="summary"><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{chr(10).join(body)}\n</tbody></table></div>"
    )


def _scenarios(report: Mapping[str, Any]) -> str:
    headers, rows = scenario_rows(report)
    if not rows:
        return ""
    head = "".join(f"<th>{_lines(cell)}</th>" for cell in headers)
    body = [f"<tr>{''.join(f'<td>{_lines(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return (
        '<h2>Other scenarios</h2><div class="scroll"><table class="summary">'
        f"<thead><tr>{head}</tr></thead><tbody>\n{chr(10).join(body)}\n</tbody></table></div>"
        f"<p><small>{escape(LEGEND)}</small></p>"
    )


def _lines(cell: str) -> str:
    """The first line as it is, the others small below it."""
    first, *others = cell.split("\n")
    return escape(first) + "".join(f"<small>{escape(line)}</small>" for line in others)


def _not_done_line(variant: str, stage: str, status: str, reason: str) -> str:
    mark = ' class="failed"' if status == "failed" else ""
    return f"<b>{escape(variant)}</b> <span{mark}>{stage} {status}</span>: {escape(reason)}"


def _list(heading: str, items: Iterable[str]) -> str:
    lines = "".join(f"<li>{item}</li>" for item in items)
    return f"<h2>{heading}</h2><ul>{lines}</ul>" if lines else ""


def _facts(heading: str, facts: Facts) -> str:
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in facts)
    return f'<h2>{escape(heading)}</h2><table class="facts"><tbody>{rows}</tbody></table>'
