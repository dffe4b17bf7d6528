"""The plot of a QAT run."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from benchmarks.report.curves import qat_plot
from deploy_tools.errors import UserError

pytest.importorskip("matplotlib")

# Of a real run: 4-bit weights, one scale a tensor, on the CIFAR-10 ResNet-20.
LOSSES = ((0.14512, 0.1358), (0.06531, 0.0656), (0.0378, 0.0392), (0.02503, 0.0328))
CURVE = [
    {
        "epoch": epoch, "loss": seen, "validation_loss": held,
        "train_sqnr_db": 8.4 + 2 * epoch, "validation_sqnr_db": 8.7 + 2 * epoch,
        "train_agreement": 0.918 + 0.01 * epoch, "validation_agreement": 0.93 + 0.01 * epoch,
    }
    for epoch, (seen, held) in enumerate(LOSSES)
]  # fmt: skip


def drawn(svg: str, points: int, style: str = "") -> list[list[tuple[float, float]]]:
    """The lines with so many points, as (x, y); y counts down the page."""
    found = []
    for element in ElementTree.fromstring(svg.replace("xlink:href", "href")).iter():
        places = re.findall(r"[ML] (\S+) (\S+)", element.get("d", ""))
        if element.get("clip-path") and len(places) == points and style in element.get("style", ""):
            found.append([(float(x), float(y)) for x, y in places])
    return found


def test_it_draws_both_curves_of_the_three_measures() -> None:
    svg = qat_plot(CURVE, "run1")
    assert svg.startswith("<svg")
    for text in ("loss", "logit SQNR, dB", "agreement, %", "train", "validation"):
        assert f">{text}<" in svg
    assert 'id="run1-' in svg
    curves = [[y for _, y in line] for line in drawn(svg, len(CURVE))]
    assert len(curves) == 6
    # Losses fall, which is down the page; SQNR and agreement rise.
    for falling in curves[:2]:
        assert falling == sorted(falling)
    for rising in curves[2:]:
        assert rising == sorted(rising, reverse=True)


def test_the_kept_epoch_is_that_of_the_lowest_validation_loss() -> None:
    moved = [dict(row) for row in CURVE]
    moved[1]["validation_loss"] = 0.001
    for curve, best in ((CURVE, 3), (moved, 1)):
        svg = qat_plot(curve)
        marks = drawn(svg, 2, "stroke-dasharray")
        assert len(marks) == 3
        places = [x for x, _ in drawn(svg, len(CURVE))[0]]
        assert {line[0][0] for line in marks} == {places[best]}


def test_a_run_of_which_only_the_start_is_known_is_drawn() -> None:
    assert "<svg" in qat_plot(CURVE[:1])


def test_the_same_curve_gives_the_same_picture() -> None:
    assert qat_plot(CURVE) == qat_plot(CURVE)


def test_no_epochs_are_refused() -> None:
    with pytest.raises(UserError, match="without epochs"):
        qat_plot([])
