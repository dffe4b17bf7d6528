"""How far logits are from the float model's."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]


def logit_noise(reference: Values, logits: Values) -> float:
    """Return the energy of the difference, summed over all images and classes."""
    return float(((reference.astype(np.float64) - logits) ** 2).sum())


def noise_by_image(reference: Values, logits: Values) -> NDArray[np.float64]:
    """Return the energy of the difference of each image, (N,); both are (N, classes)."""
    found: NDArray[np.float64] = ((reference.astype(np.float64) - logits) ** 2).sum(1)
    return found


def clearly_more(
    before: NDArray[np.float64], after: NDArray[np.float64], errors: float = 2.0
) -> bool:
    """Whether (N,) values are larger before than after, by more than so many standard errors of
    the mean of the paired differences. One unusual image cannot decide it; nor can one alone.
    """
    gains = before - after
    if len(gains) < 2:
        return False
    return bool(gains.mean() > errors * gains.std(ddof=1) / math.sqrt(len(gains)))


def logit_sqnr_db(reference: Values, logits: Values) -> float:
    """Return 10 log10(energy of the reference / energy of the difference), dB; inf if equal."""
    noise = logit_noise(reference, logits)
    signal = float((reference.astype(np.float64) ** 2).sum())
    if noise == 0.0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0.0 else -math.inf


def agreeing(reference: Values, logits: Values) -> int:
    """Return on how many images both name the same class; the lower index where logits tie."""
    return int((reference.argmax(axis=1) == logits.argmax(axis=1)).sum())
