"""What the tables of kept results have in common: reading, figures over the seeds, claims."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from deploy_tools.errors import ArtifactError, DeployToolsError


def read_kept(path: Path, study: str) -> dict[str, Any]:
    """Return what a study kept; ArtifactError for any other file."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}.") from error
    if not (
        isinstance(values, dict)
        and values.get("study") == study
        and all(isinstance(values.get(name), list) for name in ("rows", "claims"))
    ):
        raise ArtifactError(f"{path} is not what {study} keeps.")
    return values


def over_seeds(row: Mapping[str, Any], name: str, factor: float = 1.0) -> str:
    """Return the mean over the seeds (lowest to highest), or the one value."""
    mean, low, high = (factor * row[f"{name}{end}"] for end in ("", "_min", "_max"))
    return f"{mean:.2f}" if row["seeds"] == 1 else f"{mean:.2f} ({low:.2f} to {high:.2f})"


def markdown_line(cells: Iterable[str]) -> str:
    """Return one line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def claims_not_met(kept: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown list with its heading, "" where all claims are met."""
    missed = [claim for result in kept for claim in result["claims"] if not claim["met"]]
    lines = [f"- {c['name']}: {_number(c['value'])} (target {c['target']})" for c in missed]
    return "\n".join(["Claims not met:", "", *lines]) if missed else ""


def print_table(make: Callable[[], str]) -> None:
    """Print a table, or the error that kept it from being made, with its exit code."""
    try:
        click.echo(make(), nl=False)
    except DeployToolsError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(error.exit_code) from error


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
