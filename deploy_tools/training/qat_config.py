"""What a QAT run may be told. No torch in here, so a recipe can be checked without it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from deploy_tools.errors import UserError, nearest

RANGES = ("learnable", "frozen")
DISTIL = ("mse", "kl", "none")


@dataclass(frozen=True)
class QatConfig:
    """Quantization-aware fine-tuning of a trained float ONNX file.

    epochs, batch: passes over the training images, images a step.
    learning_rate: peak rate of Adam, in units of each tensor's own 8-bit step (its largest value
        over 127, the mean over its channels), so one rate fits all layers. Linear warm-up over `warmup` (a share of all steps), then half a
        cosine to 0.
    ranges: "learnable" trains the activation scales too, "frozen" keeps the calibrated ranges.
    range_learning_rate: peak rate of Adam for the logarithm of a learnable scale.
    distil: loss against the FP32 teacher: "mse" (energy of the logits' error over the energy of
        the logits, so -10 log10 of it is the SQNR), "kl" (Hinton et al. 2015, arXiv:1503.02531,
        at `temperature`), or "none". It needs no labels.
    distil_weight, labels_weight: weights of that loss and of the cross-entropy with the labels.
    weight_decay: decoupled (AdamW); 0 for none.
    flip, crop_padding: augmentation: mirror half the images; shift by up to so many pixels.
    validation: share of the given images that is held out to choose the epoch. They are training
        images too: the evaluation split is never read.
    weight_bits: simulate weights of fewer bits in the 8-bit file, 2 to 8.
    """

    epochs: int = 40
    batch: int = 50
    learning_rate: float = 0.01
    range_learning_rate: float = 0.001
    warmup: float = 0.05
    ranges: str = "learnable"
    distil: str = "mse"
    distil_weight: float = 1.0
    temperature: float = 4.0
    labels_weight: float = 0.0
    weight_decay: float = 0.0
    flip: bool = True
    crop_padding: int = 4
    validation: float = 0.2
    weight_bits: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for key, value, known in (
            ("ranges", self.ranges, RANGES), ("distil", self.distil, DISTIL)
        ):  # fmt: skip
            if value not in known:
                raise UserError(f'qat {key} "{value}" is not known.', nearest(value, known))
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"qat {name} must be at least 1.")
        for name in ("learning_rate", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"qat {name} must be above 0.")
        for name in (
            "range_learning_rate", "distil_weight", "labels_weight", "weight_decay",
            "crop_padding", "seed",
        ):  # fmt: skip
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"qat {name} must not be negative.")
        for name in ("warmup", "validation"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"qat {name} must be at least 0 and below 1.")
        if not 2 <= self.weight_bits <= 8:
            raise UserError(f"qat weight_bits must lie between 2 and 8, got {self.weight_bits}.")
        if not self.validation:
            raise UserError("qat validation must be above 0: the best epoch is chosen on it.")
        if not self.labels_weight and (self.distil == "none" or not self.distil_weight):
            raise UserError(
                "qat has nothing to learn from: no teacher and no labels.",
                'Set distil = "mse", or labels_weight above 0.',
            )

    def rate(self, step: int, steps: int) -> float:
        """Return the share of the peak rates at a step, counted from 0, of `steps`."""
        warm = self.warmup * steps
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))
