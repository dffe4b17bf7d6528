"""Markdown tables of what `ablation_speed -o FILE` kept: one a model, a line a setting.

python -m benchmarks.studies.ablation_speed_table benchmarks/results/ablation_speed-*.json
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.studies.ablation_speed import NOTHING
from benchmarks.studies.kept import claims_not_met, markdown_line, print_table, read_kept
from deploy_tools.errors import UserError

_Row = Mapping[str, Any]


def table(kept: Sequence[Mapping[str, Any]]) -> str:
    """Return Markdown: the speed over the plain file with its interval, in each runtime and
    scenario; bold where the interval lies above or below 1. Claims not met stand below.

    Raises UserError where two results hold the same model.
    """
    rows = [row for result in kept for row in result["rows"]]
    models = [dict.fromkeys(row["model"] for row in result["rows"]) for result in kept]
    names = [name for found in models for name in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two files hold {name}.", "Give one of them.")
    parts = [_section(name, [row for row in rows if row["model"] == name]) for name in names]
    return "\n\n".join(part for part in (*parts, claims_not_met(kept)) if part) + "\n"


def _section(name: str, rows: Sequence[_Row]) -> str:
    measured = [row for row in rows if "setting" in row]
    places = dict.fromkeys((row["runtime"], row["scenario"]) for row in measured)
    found = {(row["setting"], row["runtime"], row["scenario"]): row for row in measured}
    heads = ["", *(f"{runtime}, {scenario}" for runtime, scenario in places)]
    lines = [f"### {name}", "", markdown_line(heads), "|---" * len(heads) + "|"]
    for setting in dict.fromkeys(row["setting"] for row in measured):
        cells = [_cell(found.get((setting, *place))) for place in places]
        lines.append(markdown_line([setting, *cells]))
    failed = [f"- {row['runtime']} did not run: {row['reason']}" for row in rows
              if "setting" not in row]  # fmt: skip
    return "\n".join([*lines, *(["", *failed] if failed else [])])


def _cell(row: _Row | None) -> str:
    if row is None:
        return ""
    if "reason" in row:
        # A rewrite that finds nothing to change has the file's own form.
        return "as it is" if row["reason"] == NOTHING else f"did not run: {row['reason']}"
    shown = f"{row['speedup']:.2f}x [{row['low']:.2f}, {row['high']:.2f}]"
    shown = f"**{shown}**" if row["low"] > 1 or row["high"] < 1 else shown
    return f"{shown}, on" if row["on"] else shown


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
def command(files: tuple[Path, ...]) -> None:
    """Print the tables of FILES."""
    print_table(lambda: table([read_kept(path, "ablation_speed") for path in files]))


if __name__ == "__main__":
    command()
