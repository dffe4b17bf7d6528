"""Markdown tables of what `peers_speed --keep DIR` kept: a section a model and scenario.

python -m benchmarks.studies.peers_speed_table benchmarks/results/peers_speed-*.json
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.studies.kept import claims_not_met, markdown_line, print_table, read_kept
from deploy_tools.errors import UserError

_Row = Mapping[str, Any]
_SPEED = (
    "tool", "way", "input", "runs in", "streams x threads, images a call", "p50, ms", "p90, ms",
    "images/s", "over onnxruntime FP32", "logit SQNR, dB",
)  # fmt: skip
_JPEG = (
    "way", "streams x threads, images a call, decoders", "p50 of a call, ms", "p90, ms",
    "images/s", "over the first", "FP32's labels, %",
)  # fmt: skip
_OF_SPEED, _OF_PHOTOS = ("model", "scenario"), ("short_side", "layout", "scenario")
"""What names a table."""


def table(kept: Sequence[Mapping[str, Any]]) -> str:
    """Return Markdown of several results: machine, models, photos, and the claims not met.

    Raises UserError where two results hold the same table.
    """
    _refuse_duplicates(kept)
    rows = [row for result in kept for row in result["rows"]]
    parts = ["\n".join(_machine(rows))] if any("load" in row for row in rows) else []
    speed = [row for row in rows if "tool" in row]
    for names in dict.fromkeys(_names(row, _OF_SPEED) for row in speed):
        own = [row for row in rows if _names(row, _OF_SPEED) == names]
        parts.append("\n".join(_speed(", ".join(map(str, names)), own)))
    photos = [row for row in rows if "layout" in row]
    for names in dict.fromkeys(_names(row, _OF_PHOTOS) for row in photos):
        own = [row for row in photos if _names(row, _OF_PHOTOS) == names]
        parts.append("\n".join(_jpeg(own)))
    parts.append(claims_not_met(kept))
    return "\n\n".join(part for part in parts if part) + "\n"


def _names(row: _Row, keys: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in keys)


def _refuse_duplicates(kept: Sequence[Mapping[str, Any]]) -> None:
    seen: set[tuple[Any, ...]] = set()
    for result in kept:
        own = {_names(row, _OF_SPEED) for row in result["rows"] if "tool" in row}
        own |= {_names(row, _OF_PHOTOS) for row in result["rows"] if "layout" in row}
        for names in own & seen:
            raise UserError(
                f"two files hold {', '.join(map(str, names))}.",
                "One table cannot say which is which: give one of them.",
            )
        seen |= own


def _machine(rows: Sequence[_Row]) -> Iterator[str]:
    """The measured loads; results that were kept in one run hold the same ones."""
    yield "### The machine\n"
    seen = {json.dumps(row, sort_keys=True): row for row in rows if "load" in row}
    for row in seen.values():
        if "value" not in row:
            yield f"- {row['load']}: did not run: {row['reason']}"
            continue
        value, low, high = (f"{n / 1e9:,.1f}" for n in (row["value"], *row["value_ci95"]))
        yield f"- {row['load']}: {value} [{low}, {high}] x 10^9 {row['unit']}"


def _speed(title: str, rows: Sequence[_Row]) -> Iterator[str]:
    yield from _head(title, _SPEED)
    for row in rows:
        if "tool" in row:
            names = [str(row[name]) for name in ("tool", "way", "input")]
            yield markdown_line(names + _figures(row, _settings, len(_SPEED) - len(names)))
    again = [row for row in rows if "finalist" in row]
    if again:
        yield "\nThe best rows once more, by themselves:\n"
        yield from (_finalist(row) for row in again)
    for row in rows:
        if "roofline" in row:
            yield "\n" + _roofline(row)


def _settings(row: _Row) -> list[str]:
    sqnr = "" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}"
    shown = f"{row['streams']} x {row['threads']}, {row['chunk']}{' fixed' * row['fixed_batch']}"
    return [str(row["runs_in"]), shown, *_times(row), sqnr]


def _times(row: _Row) -> list[str]:
    found, limit = row["images_per_s"], row.get("latency_limit_ms")
    rate = f"none within {limit:g} ms" if found is None else _rate(found)
    return [f"{row['p50_ms']:.3g}", f"{row['p90_ms']:.3g}", rate, _ratio(row)]


def _rate(images: float) -> str:
    return f"{images:,.0f}" if images >= 100 else f"{images:.3g}"


def _ratio(row: _Row) -> str:
    if row["speedup"] is None:
        return ""
    low, high = row["speedup_ci95"]
    return "1x" if low == high == 1 else f"{row['speedup']:.2f}x [{low:.2f}, {high:.2f}]"


def _figures(row: _Row, shown: Callable[[_Row], list[str]], columns: int) -> list[str]:
    """The cells of a row that ran, or the reason why it did not."""
    if row.get("status"):
        reason = str(row["reason"]).replace("|", "/")
        return [f"did not run: {reason}", *[""] * (columns - 1)]
    return shown(row)


def _finalist(row: _Row) -> str:
    shown = _times(row)
    ratio = f", {shown[3]} onnxruntime FP32" if shown[3] not in ("", "1x") else ""
    return f"- {row['finalist']}: p50 {shown[0]} ms, p90 {shown[1]} ms, {shown[2]} images/s{ratio}"


def _roofline(row: _Row) -> str:
    low, high = (100 * end for end in row["share_of_peak_ci95"])
    return (
        f"{row['roofline']} reaches {100 * row['share_of_peak']:.0f} % [{low:.0f}, {high:.0f}] of "
        f"the INT8 peak ({row['peak_by']}): {_rate(row['images_per_s'])} of "
        f"{_rate(row['compute_limit'])} images/s, {row['multiply_adds'] / 1e6:,.0f} million "
        f"multiply-adds an image; reading weights and input from memory would allow "
        f"{_rate(row['memory_limit'])}."
    )


def _jpeg(rows: Sequence[_Row]) -> Iterator[str]:
    first = rows[0]
    size = f"short side {first['short_side']}"
    yield from _head(f"JPEG to label, {size}, {first['layout']}, {first['scenario']}", _JPEG)
    for row in rows:
        yield markdown_line([row["way"], *_figures(row, _labelled, len(_JPEG) - 1)])


def _labelled(row: _Row) -> list[str]:
    shown = f"{row['streams']} x {row['threads']}, {row['chunk']}, {row['decoders']}"
    return [shown, *_times(row), f"{100 * row['agreement']:.2f}"]


def _head(title: str, names: Sequence[str]) -> Iterator[str]:
    yield f"### {title}\n"
    yield markdown_line(names)
    yield f"|{'|'.join(['---'] * len(names))}|"


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
def command(files: tuple[Path, ...]) -> None:
    """Print the tables of FILES."""
    print_table(lambda: table([read_kept(path, "peers_speed") for path in files]))


if __name__ == "__main__":
    command()
