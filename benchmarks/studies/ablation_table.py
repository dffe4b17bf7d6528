"""One Markdown table of what `ablation_accuracy --json` kept: a line a row, two columns a target.

Run as `python -m benchmarks.studies.ablation_table benchmarks/results/ablation_accuracy-*.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.studies.kept import (
    claims_not_met,
    markdown_line,
    over_seeds,
    print_table,
    read_kept,
)
from deploy_tools.errors import ArtifactError


def table(kept: Sequence[Mapping[str, Any]]) -> str:
    """Return Markdown: mean and lowest to highest of the calibration seeds, claims not met below.

    kept: results of one model, a target each; ArtifactError where they are not.
    """
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    models = set()
    for result in kept:
        rows = [row for row in result["rows"] if "target" in row]
        if not rows or rows[0]["target"] in found:
            raise ArtifactError("the files are not one of each target.", "Give one of each.")
        found[rows[0]["target"]] = {row["row"]: row for row in rows}
        models.add(rows[0]["model"])
    if len(models) > 1:
        raise ArtifactError(f"the files are of several models: {', '.join(sorted(models))}.")
    names = dict.fromkeys(name for rows in found.values() for name in rows)
    heads = [f"{target}: {what}" for target in found for what in ("logit SQNR, dB", "agreement, %")]
    lines = [markdown_line(["row", *heads]), "|---|" + "---|" * len(heads)]
    for name in names:
        cells = [cell for rows in found.values() for cell in _cells(rows.get(name))]
        lines.append(markdown_line([name, *cells]))
    return "\n\n".join(part for part in ("\n".join(lines), claims_not_met(kept)) if part) + "\n"


def _cells(row: Mapping[str, Any] | None) -> list[str]:
    if row is None:
        return ["", ""]
    return [over_seeds(row, "sqnr_db"), over_seeds(row, "agreement", 100.0)]


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
def command(files: tuple[Path, ...]) -> None:
    """Print the table of FILES: results of one model, one of each target."""
    print_table(lambda: table([read_kept(file, "ablation_accuracy") for file in files]))


if __name__ == "__main__":
    command()
