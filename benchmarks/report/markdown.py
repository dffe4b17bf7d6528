"""report.md: the same table and facts, for a terminal, a pull request or a wiki."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.report.facts import headline, title
from benchmarks.report.facts import sections as fact_sections
from benchmarks.report.scenarios import LEGEND, scenario_rows
from benchmarks.report.table import not_done, notes, summary_rows


def markdown_from_report(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown."""
    headers, rows = summary_rows(report)
    parts = [f"# {_cell(title(report))}"]
    if text := headline(report):
        parts.append(_cell(text))
    parts.append(_table(headers, rows))
    parts.append(
        "Drop: percentage points of top-1, baseline minus variant, on the same images (Tango's "
        "interval). Speedup: median over interleaved rounds of the ratio to the baseline "
        "(bootstrap interval). p50 and p99 are percentiles of the time of one call."
    )
    headers, rows = scenario_rows(report)
    if rows:
        parts += ["## Other scenarios", _table(headers, rows), LEGEND]
    if lines := [
        f"- `{v}` {stage} {status}: {_cell(why)}" for v, stage, status, why in not_done(report)
    ]:
        parts += ["## Not done", "\n".join(lines)]
    if lines := [f"- `{variant}`: {_cell(note)}" for variant, note in notes(report)]:
        parts += ["## Notes", "\n".join(lines)]
    for name, facts in fact_sections(report):
        parts += [f"## {name}", "\n".join(f"- {_cell(k)}: {_cell(v)}" for k, v in facts)]
    parts += ["## Make it again", f"```\n{report['command'].replace('```', '')}\n```"]
    return "\n\n".join(parts) + "\n"


def _table(headers: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [[_cell(cell) for cell in row] for row in (headers, *rows)]
    lines.insert(1, ["---"] + ["---:"] * (len(lines[0]) - 1))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Keep text from breaking a table or turning into markup."""
    safe = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("`", "'")
    return safe.replace("\n", "<br>")
