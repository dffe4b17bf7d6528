"""One Markdown table of what `peers_accuracy --keep DIR` kept, a section a model.

    python -m benchmarks.studies.peers_table [--best] benchmarks/results/peers_accuracy-*.json

--best: our default rows, and of every other tool the row with the highest logit SQNR, chosen after
the fact; rows whose convolutions stay in float are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from benchmarks.studies.peers_rows import DEFAULT_METHODS, HARD, PLAIN, US

_HEAD = (
    "setting", "tool", "method", "runtime", "top-1, %", "drop, points", "agreement, %",
    "logit SQNR, dB", "CPU seconds", "peak MB", "file MB",
)  # fmt: skip


def table(kept: Sequence[Mapping[str, Any]], best: bool = False) -> str:
    """Return Markdown of several results: rows in their order, claims not met below.

    best: fewer rows, see the module.
    """
    rows = [row for result in kept for row in (best_rows(result) if best else result["rows"])]
    parts = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        parts.append("\n".join(_section(model, own)))
    return "\n\n".join(part for part in (*parts, claims_not_met(kept)) if part) + "\n"


def best_rows(kept: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the rows of --best, in their order: of each setting and tool one, of ours more."""
    rows = kept["rows"]
    chosen = {}
    for place, row in enumerate(rows):
        ours = row["tool"] == US
        if row["tool"] == "fp32":
            chosen["fp32", ""] = place
        elif (
            "sqnr_db" not in row
            or not row["whole"]
            or (ours and row["method"] not in DEFAULT_METHODS)
        ):
            continue
        else:
            of = (row["setting"], row["tool"], *([row["method"], row["runtime"]] if ours else []))
            if of not in chosen or row["sqnr_db"] > rows[chosen[of]]["sqnr_db"]:
                chosen[of] = place
    order = (PLAIN, *HARD)
    return sorted(
        (rows[place] for place in chosen.values()),
        key=lambda row: order.index(row.get("setting", PLAIN)),
    )


def _section(model: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    fp32 = next(row for row in rows if row["tool"] == "fp32")
    yield f"### {model}\n\nFP32 is right on {fp32['correct']:,} of {fp32['images']:,} images.\n"
    yield markdown_line(_HEAD)
    yield f"|{'|'.join(['---'] * len(_HEAD))}|"
    for row in rows:
        if row is not fp32:
            yield markdown_line([*_names(row), *_figures(row)])


def _names(row: Mapping[str, Any]) -> list[str]:
    return [str(row[name]) for name in ("setting", "tool", "method", "runtime")]


def _figures(row: Mapping[str, Any]) -> list[str]:
    if "sqnr_db" not in row:
        reason = str(row["reason"]).replace("|", "/")
        return [f"did not run: {reason}", *[""] * (len(_HEAD) - 5)]
    ended = f" (then: {row['reason']})".replace("|", "/") if row.get("reason") else ""
    return [
        f"{100 * row['top1']:.2f}{ended}",
        f"{row['drop_pp']:+.2f} [{row['drop_low_pp']:+.2f}, {row['drop_high_pp']:+.2f}]",
        over_seeds(row, "agreement", 100.0),
        over_seeds(row, "sqnr_db"),
        f"{row['cpu_seconds']:.1f}",
        f"{row['peak_rss_bytes'] / 1e6:.0f}",
        f"{row['file_bytes'] / 1e6:.2f}",
    ]


@click.command()
@click.option("--best", is_flag=True, help="Our defaults and the best row of every other tool.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
def command(files: tuple[Path, ...], best: bool) -> None:
    """Print the table of FILES."""
    print_table(lambda: table([read_kept(path, "peers_accuracy") for path in files], best))


if __name__ == "__main__":
    command()
