"""Accuracy of a candidate against a baseline on the same images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.predictions import Predictions
from benchmarks.statistics import (
    Interval,
    logit_sqnr_interval,
    mcnemar_exact,
    paired_drop_interval,
    wilson_interval,
)
from deploy_tools.errors import UserError


@dataclass(frozen=True)
class Accuracy:
    """How good a candidate is, and how far from its baseline. Intervals are 95 %.

    top1, top5, agreement: fractions of `images`; top5 is None below 5 classes.
    drop_pp: percentage points, baseline minus candidate, over the same images.
    agreement: how often both name the same class, right or wrong.
    logit_sqnr_db: inf where the logits are identical.
    """

    images: int
    top1: float
    top1_ci95: tuple[float, float]
    top5: float | None
    drop_pp: float
    drop_ci95_pp: tuple[float, float]
    mcnemar_p: float
    agreement: float
    agreement_ci95: tuple[float, float]
    logit_sqnr_db: float
    logit_sqnr_db_ci95: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the values under report.json's names.

        JSON has no infinity: an infinite ratio, or end of its interval, is written as null.
        `logits_identical` tells the case where it is null because nothing differs.
        """
        return {
            "images": self.images,
            "top1": self.top1,
            "top1_ci95": list(self.top1_ci95),
            "top5": self.top5,
            "drop_pp": self.drop_pp,
            "drop_ci95_pp": list(self.drop_ci95_pp),
            "mcnemar_p": self.mcnemar_p,
            "agreement": self.agreement,
            "agreement_ci95": list(self.agreement_ci95),
            "logit_sqnr_db": _finite(self.logit_sqnr_db),
            "logit_sqnr_db_ci95": [_finite(end) for end in self.logit_sqnr_db_ci95],
            "logits_identical": math.isinf(self.logit_sqnr_db),
        }

    def __str__(self) -> str:
        low, high = self.drop_ci95_pp
        return (
            f"top-1 {100 * self.top1:.2f} % of {self.images} images, drop {self.drop_pp:+.2f} pp "
            f"[{low:+.2f}, {high:+.2f}], agreement {100 * self.agreement:.2f} %, "
            f"SQNR {self.logit_sqnr_db:.1f} dB, McNemar p {self.mcnemar_p:.3g}"
        )


def accuracy_from_predictions(
    candidate: Predictions, baseline: Predictions, seed: int = 0
) -> Accuracy:
    """Compare two models on the same images, image by image.

    seed: of the bootstrap over images. Raises UserError where the images, their labels or the
    number of classes differ, since a paired comparison would then mean nothing.
    """
    _check_same_images(candidate, baseline)
    images = len(candidate)
    right, was_right = candidate.correct, baseline.correct
    lost = int((was_right & ~right).sum())
    gained = int((right & ~was_right).sum())
    top1 = wilson_interval(int(right.sum()), images)
    drop = paired_drop_interval(lost, gained, images)
    agreement = wilson_interval(int((candidate.top1 == baseline.top1).sum()), images)
    sqnr = logit_sqnr_interval(baseline.logits, candidate.logits, seed)
    return Accuracy(
        images=images,
        top1=top1.estimate,
        top1_ci95=_ends(top1),
        top5=top_k(candidate, 5),
        drop_pp=drop.estimate,
        drop_ci95_pp=_ends(drop),
        mcnemar_p=mcnemar_exact(lost, gained),
        agreement=agreement.estimate,
        agreement_ci95=_ends(agreement),
        logit_sqnr_db=sqnr.estimate,
        logit_sqnr_db_ci95=_ends(sqnr),
    )


def top_k(predictions: Predictions, k: int) -> float | None:
    """Return the fraction of images whose label is among the k highest logits.

    Logits that tie (INT8 models make many) rank by class index, as argmax does, so top-1 is
    the same here and there. None where the model has fewer than k classes.
    """
    if predictions.classes < k:
        return None
    labels = predictions.labels[:, None]
    own = np.take_along_axis(predictions.logits, labels, axis=1)
    earlier = np.arange(predictions.classes)[None, :] < labels
    ahead = (predictions.logits > own) | ((predictions.logits == own) & earlier)
    return float((ahead.sum(axis=1) < k).mean())


def confusion_matrix(predictions: Predictions) -> NDArray[np.int64]:
    """Return counts of shape (C, C): row = label, column = predicted class."""
    classes = predictions.classes
    cells = predictions.labels * classes + predictions.top1
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def _check_same_images(candidate: Predictions, baseline: Predictions) -> None:
    if candidate.ids != baseline.ids:
        place = next(
            (
                i
                for i, pair in enumerate(zip(candidate.ids, baseline.ids, strict=False))
                if pair[0] != pair[1]
            ),
            min(len(candidate), len(baseline)),
        )
        raise UserError(
            f"the two predictions are not about the same images: {len(candidate)} and "
            f"{len(baseline)}, different from image {place} on.",
            "Evaluate both on the same split and in the same order.",
        )
    if candidate.data != baseline.data or not np.array_equal(candidate.labels, baseline.labels):
        raise UserError(
            "the two predictions have the same image names and different images or labels.",
            "Evaluate both on the same data.",
        )
    if candidate.classes != baseline.classes:
        raise UserError(
            f"the candidate has {candidate.classes} classes and the baseline {baseline.classes}."
        )


def _ends(interval: Interval) -> tuple[float, float]:
    return (interval.low, interval.high)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
