"""One Markdown table of what `ablation_accuracy --json` kept: a line a row, two columns a target.

python -m benchmarks.studies.ablation_table benchmarks/results/ablation_accuracy-*.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from deploy_tools.errors import ArtifactError, DeployToolsError


def table(kept: Sequence[Mapping[str, Any]]) -> str:
    """Return Markdown: mean and lowest to highest of the calibration seeds, claims not met below.

    kept: results of one model, a target each; ArtifactError where two have the same target.
    """
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for result in kept:
        rows = [row for row in result["rows"] if "target" in row]
        if not rows or rows[0]["target"] in found:
            raise ArtifactError("the files are not one of each target.", "Give one of each.")
        found[rows[0]["target"]] = {row["row"]: row for row in rows}
    names = dict.fromkeys(name for rows in found.values() for name in rows)
    heads = [f"{target}: {what}" for target in found for what in ("logit SQNR, dB", "agreement, %")]
    lines = [_line(["row", *heads]), "|---|" + "---|" * len(heads)]
    for name in names:
        cells = [cell for rows in found.values() for cell in _cells(rows.get(name))]
        lines.append(_line([name, *cells]))
    missed = [claim for result in kept for claim in result["claims"] if not claim["met"]]
    if missed:
        lines += ["", "Claims not met:", ""]
        lines += [f"- {c['name']}: {_number(c['value'])} (target {c['target']})" for c in missed]
    return "\n".join(lines) + "\n"


def _cells(row: Mapping[str, Any] | None) -> list[str]:
    if row is None:
        return ["", ""]
    low, mean, high = row["sqnr_db_min"], row["sqnr_db"], row["sqnr_db_max"]
    agreement = [100 * row[key] for key in ("agreement", "agreement_min", "agreement_max")]
    return [
        f"{mean:.2f} ({low:.2f} to {high:.2f})",
        f"{agreement[0]:.2f} ({agreement[1]:.2f} to {agreement[2]:.2f})",
    ]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


@click.command(help=__doc__)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
def command(files: tuple[Path, ...]) -> None:
    """Print the table."""
    try:
        click.echo(table([_read(file) for file in files]), nl=False)
    except DeployToolsError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(error.exit_code) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}", "Give what a study kept.") from error
    if not isinstance(kept, dict) or kept.get("study") != "ablation_accuracy":
        raise ArtifactError(f"{path} is not of ablation_accuracy.", "Give what that study kept.")
    return kept


if __name__ == "__main__":
    command()
