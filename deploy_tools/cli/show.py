"""What commands print: the report's table, lists of artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy_tools.cli.common import print_json
from deploy_tools.pipeline import RunResult
from deploy_tools.runtimes import Session


def print_report(report: dict[str, Any], out: Path) -> None:
    """Print the report's one table, what was skipped or failed, and where the reports are."""
    from benchmarks.report import summary_rows
    from benchmarks.report.facts import headline
    from benchmarks.report.scenarios import scenario_rows
    from benchmarks.report.table import not_done, notes

    console = _console()
    print_table(*summary_rows(report, console.width), console)
    headers, rows = scenario_rows(report)
    if rows:
        print_table(headers, rows, console)
    if text := headline(report):
        click.echo(text)
    for variant, stage, status, reason in not_done(report):
        click.echo(f"{variant}: {stage} {status}: {reason}")
    for variant, note in notes(report):
        click.echo(f"{variant}: {note}")
    click.echo(f"Report: {out / 'report.html'} (also report.md, report.json, manifest.json)")


def print_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], console: Console | None = None
) -> None:
    """Print a table; cells may hold two lines.

    Cells are shown as they are: a node may be named "[/relu]", which is no markup.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for position, header in enumerate(headers):
        table.add_column(header, justify="left" if position == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    (console or _console()).print(table)


def say_session(model: Path, session: Session, verbose: bool) -> None:
    """With -v, say on stderr where and in which precision a file really runs."""
    if verbose:
        click.echo(
            f"{model}: {session.provider}, {session.precision}, {session.threads} threads", err=True
        )


def _console() -> Console:
    """As wide as the terminal; where there is none, as wide as any table needs."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def print_artifacts(result: RunResult, as_json: bool) -> None:
    """Say what was (or, in a dry run, would be) made and what was kept."""
    if as_json:
        print_json({"made": list(result.made), "kept": list(result.kept)})
        return
    for name in result.made:
        click.echo(f"make  {name}")
    for name in result.kept:
        click.echo(f"keep  {name}")
