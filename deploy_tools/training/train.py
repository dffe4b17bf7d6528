"""Train a classifier; keep the epoch that is best on held-out training images."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from deploy_tools.artifacts import write_text
from deploy_tools.data.source import ImageSource, batches
from deploy_tools.data.spec import InputSpec
from deploy_tools.data.splits import stratified_split
from deploy_tools.errors import UserError
from deploy_tools.models.checkpoint import save_checkpoint
from deploy_tools.training.augment import random_crop, random_flip
from deploy_tools.training.config import TrainConfig

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave; top-1 values are fractions of the held-out training images."""

    epoch: int
    lr: float
    train_loss: float
    train_top1: float
    validation_top1: float
    validation_loss: float
    seconds: float


@dataclass(frozen=True)
class Trained:
    """The kept epoch and the whole course."""

    checkpoint: Path
    best: Epoch
    epochs: tuple[Epoch, ...]


def train_model(
    model: nn.Module,
    source: ImageSource,
    spec: InputSpec,
    config: TrainConfig,
    out: Path,
    metadata: dict[str, str],
    progress: Progress | None = None,
) -> Trained:
    """Train `model` in place on `source` and write checkpoint.safetensors and train-log.jsonl.

    The images are held in memory as float32, so this is for small ones (28x28, 32x32).
    metadata goes into the checkpoint beside the kept epoch. Same seed, threads and machine:
    same result; across machines floating point sums differ.
    Raises UserError where fewer images than one batch are left to train on, or where the loss
    stops being a number, and OutputError where `out` cannot be written.
    """
    torch.manual_seed(config.seed)
    if config.threads:
        torch.set_num_threads(config.threads)
    kept, held = stratified_split(source.labels, config.validation_images, config.seed)
    if len(kept) < config.batch:
        raise UserError(
            f"{len(kept)} images are left to train on, fewer than one batch of {config.batch}.",
            "Lower [train] validation_images or batch.",
        )
    images, labels = _load(source, spec, kept)
    held_images, held_labels = _load(source, spec, held)
    log = out / "train-log.jsonl"
    write_text(log, "")
    run = _Run(model, config, len(images))
    epochs: list[Epoch] = []
    for number in range(1, config.epochs + 1):
        started = time.monotonic()
        loss, top1 = run.epoch(images, labels, number, progress)
        if not math.isfinite(loss):
            raise UserError(f"training diverged in epoch {number}.", "Lower [train] lr.")
        held_top1, held_loss = run.validate(held_images, held_labels)
        epoch = Epoch(
            number, run.lr, round(loss, 5), round(top1, 5), round(held_top1, 5),
            round(held_loss, 5), round(time.monotonic() - started, 1),
        )  # fmt: skip
        epochs.append(epoch)
        with log.open("a") as file:
            file.write(json.dumps(asdict(epoch)) + "\n")
        best = max(epochs, key=lambda e: (e.validation_top1, -e.validation_loss))
        if best is epoch:
            chosen = {"epoch": str(number), "validation_top1": str(epoch.validation_top1)}
            save_checkpoint(run.averaged, out / "checkpoint.safetensors", metadata | chosen)
    return Trained(out / "checkpoint.safetensors", best, tuple(epochs))


class _Run:
    """The optimizer, the schedule and the averaged weights of one training."""

    def __init__(self, model: nn.Module, config: TrainConfig, images: int) -> None:
        self.config = config
        self.model = model.to(memory_format=torch.channels_last)
        self.averaged = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.generator = torch.Generator().manual_seed(config.seed)
        self.steps_per_epoch = images // config.batch
        self.step = 0
        self.lr = 0.0
        decayed = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": config.weight_decay}, {"params": others},
        ]  # fmt: skip
        self.optimizer = torch.optim.SGD(
            groups,
            lr=config.lr, momentum=config.momentum, nesterov=config.nesterov,
        )  # fmt: skip

    def epoch(
        self, images: Tensor, labels: Tensor, number: int, progress: Progress | None
    ) -> tuple[float, float]:
        """One pass in random order; returns the mean loss and top-1 on the augmented images."""
        self.model.train()
        losses, correct, seen = 0.0, 0, 0
        for index in self._order(len(images)):
            x, y = self._augmented(images[index]), labels[index]
            with torch.autocast("cpu", torch.bfloat16, enabled=self.config.precision == "bf16"):
                logits = self.model(x)
            loss = functional.cross_entropy(
                logits.float(), y, label_smoothing=self.config.label_smoothing
            )
            self._update(loss)
            losses += loss.item() * len(y)
            correct += int((logits.argmax(1) == y).sum())
            seen += len(y)
            if progress and self.step % 20 == 0:
                total = self.steps_per_epoch * self.config.epochs
                progress(f"epoch {number}, loss {losses / seen:.3f}", self.step, total)
        return losses / seen, correct / seen

    def validate(self, images: Tensor, labels: Tensor) -> tuple[float, float]:
        """Top-1 and mean loss of the averaged weights, in float32, without augmentation."""
        trained = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.averaged)
        self.model.eval()
        correct, loss = 0, 0.0
        with torch.no_grad():
            for start in range(0, len(images), 500):
                x, y = images[start : start + 500], labels[start : start + 500]
                logits = self.model(x)
                correct += int((logits.argmax(1) == y).sum())
                loss += functional.cross_entropy(logits, y, reduction="sum").item()
        self.model.load_state_dict(trained)
        return correct / len(labels), loss / len(labels)

    def _order(self, count: int) -> Iterator[Tensor]:
        order = torch.randperm(count, generator=self.generator)
        for start in range(0, self.steps_per_epoch * self.config.batch, self.config.batch):
            yield order[start : start + self.config.batch]

    def _augmented(self, images: Tensor) -> Tensor:
        images = random_crop(images, self.config.crop_padding, self.generator)
        if self.config.flip:
            images = random_flip(images, self.generator)
        return images.contiguous(memory_format=torch.channels_last)

    def _update(self, loss: Tensor) -> None:
        self.lr = self._rate()
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.step += 1
        # Early on the average follows quickly, so that it forgets the random start.
        decay = min(self.config.ema, self.step / (self.step + 10)) if self.config.ema else 0.0
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                if value.is_floating_point():
                    self.averaged[name].lerp_(value, 1 - decay)
                else:
                    self.averaged[name].copy_(value)

    def _rate(self) -> float:
        """Linear warm-up, then half a cosine to zero (Loshchilov and Hutter, 2017)."""
        warm = self.config.warmup_epochs * self.steps_per_epoch
        total = self.config.epochs * self.steps_per_epoch
        if self.step < warm:
            return self.config.lr * (self.step + 1) / warm
        return self.config.lr * 0.5 * (1 + math.cos(math.pi * (self.step - warm) / (total - warm)))


def _load(
    source: ImageSource, spec: InputSpec, indices: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    inputs: list[Any] = []
    labels: list[Any] = []
    for x, y in batches(source, spec, 1000, indices.tolist()):
        inputs.append(x)
        labels.append(y)
    return torch.from_numpy(np.concatenate(inputs)), torch.from_numpy(np.concatenate(labels))
