"""The course of a fine-tuning, epoch by epoch, as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.report.plots import inline_svg
from deploy_tools.errors import UserError

_SEEN, _HELD = "#3b82c4", "#e07b14"
_PANELS = (
    ("loss", "train", "loss", "validation", "validation_loss", 1.0),
    ("logit SQNR, dB", "train", "train_sqnr_db", "validation", "validation_sqnr_db", 1.0),
    ("agreement, %", "train", "train_agreement", "validation", "validation_agreement", 100.0),
)  # fmt: skip


def qat_plot(curve: Sequence[Mapping[str, float]], name: str = "qat") -> str:
    """Loss (log axis), logit SQNR and agreement with the FP32 teacher against the epoch.

    curve: one mapping an epoch, the start first, with `epoch`, `loss`, `train_sqnr_db`,
    `train_agreement` and their `validation_` counterparts; agreement is a fraction. The dashed
    line marks the kept epoch, that of the lowest validation loss. name: begins the ids in the SVG.
    Raises UserError where there is nothing to draw.
    """
    if not curve:
        raise UserError("a curve without epochs cannot be drawn.")
    epochs = [row["epoch"] for row in curve]
    best = min(curve, key=lambda row: row["validation_loss"])["epoch"]

    def draw(figure: Any) -> None:
        panels = figure.subplots(len(_PANELS), 1, sharex=True)
        for axes, (title, seen, seen_key, held, held_key, factor) in zip(
            panels, _PANELS, strict=True
        ):
            for label, key, color in ((seen, seen_key, _SEEN), (held, held_key, _HELD)):
                values = [factor * row[key] for row in curve]
                axes.plot(epochs, values, color=color, label=label, marker="o", markersize=3)
            axes.axvline(best, color="#808890", linewidth=0.9, dashes=(4, 3))
            axes.set_ylabel(title)
        panels[0].set_yscale("log")
        panels[0].legend(
            loc="lower center", bbox_to_anchor=(0.5, 1.01), ncols=2, frameon=False, fontsize=9.5
        )
        panels[-1].set_xlabel("epoch (0: quantized, not trained)")

    return inline_svg(draw, (7.4, 6.4), name)
