"""What a training recipe may say."""

from __future__ import annotations

from dataclasses import dataclass

from deploy_tools.errors import UserError


@dataclass(frozen=True)
class TrainConfig:
    """The [train] table of a recipe.

    validation_images: how many training images (stratified by class, drawn with `seed`) are
        held out to choose the epoch; the test split is never read by training.
    lr: peak learning rate of SGD; linear warm-up over `warmup_epochs`, then half a cosine to 0.
    crop_padding: pixels of padding around the normalized image before a random crop of its own
        size; they are zero there, which is the mean color.
    ema: decay a step of the averaged weights, which are the ones kept; 0 keeps the raw weights.
    precision: "bf16" runs the forward pass under bfloat16 autocast, "fp32" does not.
    """

    epochs: int
    batch: int = 128
    validation_images: int = 5000
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    crop_padding: int = 2
    flip: bool = True
    ema: float = 0.999
    precision: str = "fp32"
    threads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise UserError(f'[train] precision must be "fp32" or "bf16", got "{self.precision}".')
        for name in ("epochs", "batch", "validation_images"):
            if getattr(self, name) < 1:
                raise UserError(f"[train] {name} must be at least 1.")
        for name in ("ema", "momentum", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"[train] {name} must be at least 0 and below 1.")
        for name in ("weight_decay", "warmup_epochs", "crop_padding", "threads", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"[train] {name} must not be negative.")
        if self.lr <= 0:
            raise UserError("[train] lr must be above 0.")
        if self.nesterov and not self.momentum:
            raise UserError("[train] nesterov needs momentum.", "Set nesterov = false.")
