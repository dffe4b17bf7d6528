"""Quantization-aware training under the Q/DQ plan that the writer will write.

The float file is fine-tuned with fake-quantize at the very tensors of the plan. What comes back
is a float file whose weights lie on the writer's grid, and ranges: the one Q/DQ writer makes the
quantized file from both, and it computes what was trained.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from deploy_tools.artifacts import atomic_path
from deploy_tools.data.check import check_classes
from deploy_tools.data.source import ImageSource, batches
from deploy_tools.data.spec import InputSpec
from deploy_tools.data.splits import stratified_split
from deploy_tools.errors import UserError
from deploy_tools.onnx_files import load_onnx
from deploy_tools.quantization.prepare import prepared
from deploy_tools.quantization.static import (
    Ranges,
    StaticConfig,
    activation_tensors,
    qdq_from_onnx,
)
from deploy_tools.quantization.targets import Target, target_named
from deploy_tools.training.augment import random_crop, random_flip
from deploy_tools.training.fake_quantize import largest
from deploy_tools.training.fake_quantize_module import FakeQuantizedModule, Grid
from deploy_tools.training.onnx_module import OnnxModule, logits_of, with_weights
from deploy_tools.training.qat_config import QatConfig
from deploy_tools.training.qat_loss import agreement, qat_loss, sqnr_db
from deploy_tools.training.qat_result import LearntRanges, QatEpoch, QatResult

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Images:
    """Preprocessed images (N, C, H, W), their labels (N,) and the teacher's logits."""

    inputs: Tensor
    labels: Tensor
    logits: Tensor


def qat_from_onnx(
    model: Path,
    ranges: Ranges,
    source: ImageSource,
    indices: Sequence[int],
    spec: InputSpec,
    static: StaticConfig,
    config: QatConfig,
    path: Path,
    progress: Progress | None = None,
    teacher: Path | None = None,
) -> QatResult:
    """Fine-tune a float ONNX file for a target and write it, corrected, to `path`.

    ranges: where the activation ranges start. source, indices: training or calibration images;
    a share of them (`config.validation`) is held out to choose the epoch, the start included, so
    the result is never worse than plain PTQ on those. They are held in memory as float32.
    teacher: the float file whose logits are the goal; `model` itself where it is not given.
    Same seed, threads and machine: same result.
    Raises UserError where too few images are left for one batch, where the teacher's logits have
    another shape, or where the loss stops being a number.
    """
    proto = prepared(load_onnx(model))
    target = target_named(static.target)
    module = fake_quantized(model, proto, ranges, static, config)
    fp32 = OnnxModule(load_onnx(teacher or model))
    training, held = _split(source, indices, spec, config, fp32)
    wanted, found = (
        tuple(t.shape[1:]) for t in (training.logits, logits_of(module, training.inputs[:1]))
    )
    if wanted != found:
        raise UserError(
            f"{teacher} gives logits of shape {wanted}, {model} of {found}.",
            "Give a teacher of the same classes.",
        )
    if config.labels_weight:
        check_classes(source, training.logits.shape[1])
    run = _Run(module, fp32, config, training, held)
    best, curve = run.all_epochs(progress)
    with atomic_path(path) as part:
        onnx.save(with_weights(proto, module.written_weights()), str(part))
    learnt = _learnt_ranges(module, proto, ranges, target, config)
    return QatResult(path, learnt, best, curve, len(training.inputs), len(held.inputs))


def fake_quantized(
    model: Path, proto: onnx.ModelProto, ranges: Ranges, static: StaticConfig, config: QatConfig
) -> FakeQuantizedModule:
    """Return the module of the Q/DQ file that the writer makes of `model`.

    proto: `model`, prepared as the writer does it.
    """
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.onnx"
        qdq_from_onnx(model, ranges, plan, static)
        quantized = onnx.load(str(plan))
    levels = 64 if target_named(static.target).reduce_range else 127
    grid = Grid(levels, config.weight_bits)
    return FakeQuantizedModule(quantized, proto, grid, config.ranges == "learnable")


def _split(
    source: ImageSource,
    indices: Sequence[int],
    spec: InputSpec,
    config: QatConfig,
    teacher: OnnxModule,
) -> tuple[_Images, _Images]:
    """Return the images to train on and those held out, stratified by label."""
    chosen = np.asarray(indices, np.int64)
    count = max(round(config.validation * len(chosen)), 1)
    if len(chosen) - count < config.batch:
        raise UserError(
            f"{len(chosen) - count} images are left to train on, fewer than one batch of "
            f"{config.batch}.",
            "Give more images, or lower the qat batch or validation.",
        )
    kept, held = stratified_split(source.labels[chosen], count, config.seed)
    return (
        _load(source, spec, chosen[kept].tolist(), teacher),
        _load(source, spec, chosen[held].tolist(), teacher),
    )


def _load(
    source: ImageSource, spec: InputSpec, indices: Sequence[int], teacher: OnnxModule
) -> _Images:
    inputs: list[Any] = []
    labels: list[Any] = []
    for x, y in batches(source, spec, 250, indices):
        inputs.append(x)
        labels.append(y)
    images = torch.from_numpy(np.concatenate(inputs))
    return _Images(images, torch.from_numpy(np.concatenate(labels)), logits_of(teacher, images))


class _Run:
    """The optimizer, the schedule and the best state of one fine-tuning."""

    def __init__(
        self,
        module: FakeQuantizedModule,
        teacher: OnnxModule,
        config: QatConfig,
        training: _Images,
        held: _Images,
    ) -> None:
        self.module, self.teacher, self.config = module, teacher, config
        self.training, self.held = training, held
        self.generator = torch.Generator().manual_seed(config.seed)
        self.steps_per_epoch = len(training.inputs) // config.batch
        self.step = 0
        self.optimizer = torch.optim.AdamW(_groups(module, config))
        self.peaks = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.share = 0.0

    def all_epochs(self, progress: Progress | None) -> tuple[QatEpoch, tuple[QatEpoch, ...]]:
        """Train; leave the module in the state of the best epoch; return it and all epochs."""
        start = logits_of(self.module, self.training.inputs)
        best = self._judged(0, start, self.training, time.monotonic())
        curve, kept = [best], copy.deepcopy(self.module.state_dict())
        for number in range(1, self.config.epochs + 1):
            started = time.monotonic()
            epoch = self._judged(number, *self._one_epoch(number, progress), started)
            curve.append(epoch)
            if epoch.validation_loss < best.validation_loss:
                best, kept = epoch, copy.deepcopy(self.module.state_dict())
        self.module.load_state_dict(kept)
        return best, tuple(curve)

    def _one_epoch(self, number: int, progress: Progress | None) -> tuple[Tensor, _Images]:
        """One pass in random order; return our logits and what was seen, augmented."""
        ours: list[Tensor] = []
        goals: list[Tensor] = []
        labels: list[Tensor] = []
        for index in self._order():
            images = self._augmented(self.training.inputs[index])
            labels.append(self.training.labels[index])
            with torch.no_grad():
                goals.append(self.teacher(images))
            logits = self.module(images)
            loss = qat_loss(logits, goals[-1], labels[-1], self.config)
            if not math.isfinite(loss.item()):
                raise UserError(f"QAT diverged in epoch {number}.", "Lower its learning_rate.")
            self._update(loss)
            ours.append(logits.detach())
            if progress:
                total = self.steps_per_epoch * self.config.epochs
                progress(f"QAT epoch {number}, loss {loss.item():.3g}", self.step, total)
        seen = _Images(self.training.inputs[:0], torch.cat(labels), torch.cat(goals))
        return torch.cat(ours), seen

    def _judged(self, number: int, logits: Tensor, seen: _Images, started: float) -> QatEpoch:
        held = logits_of(self.module, self.held.inputs)
        return QatEpoch(
            epoch=number,
            lr=self.share,
            loss=self._loss(logits, seen),
            train_sqnr_db=sqnr_db(logits, seen.logits),
            train_agreement=agreement(logits, seen.logits),
            validation_loss=self._loss(held, self.held),
            validation_sqnr_db=sqnr_db(held, self.held.logits),
            validation_agreement=agreement(held, self.held.logits),
            seconds=round(time.monotonic() - started, 2),
        )

    def _loss(self, logits: Tensor, images: _Images) -> float:
        return float(qat_loss(logits, images.logits, images.labels, self.config))

    def _order(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.training.inputs), generator=self.generator)
        for start in range(0, self.steps_per_epoch * self.config.batch, self.config.batch):
            yield order[start : start + self.config.batch]

    def _augmented(self, images: Tensor) -> Tensor:
        images = random_crop(images, self.config.crop_padding, self.generator)
        return random_flip(images, self.generator) if self.config.flip else images

    def _update(self, loss: Tensor) -> None:
        steps = self.steps_per_epoch * self.config.epochs
        self.share = self.config.rate(self.step, steps)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * self.share
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.step += 1


def _groups(module: FakeQuantizedModule, config: QatConfig) -> list[dict[str, Any]]:
    """Return one group a weight tensor, its rate in units of its 8-bit step, and one of scales.

    Adam moves every value by about its rate a step. Weights of different layers differ in size
    by orders of magnitude, so one absolute rate would do nothing to some and too much to others.
    """
    groups: list[dict[str, Any]] = []
    for name in module.weight_names:
        weight = module.weight(name)
        unit = float(largest(weight, 0 if weight.ndim > 1 else None).mean()) / 127
        decay = config.weight_decay if weight.ndim > 1 else 0.0
        groups.append(
            {"params": [weight], "lr": config.learning_rate * unit, "weight_decay": decay}
        )
    scales = list(module.quantizers.parameters())
    if scales:
        rate = config.range_learning_rate
        groups.append({"params": scales, "lr": rate, "weight_decay": 0.0})
    return groups


def _learnt_ranges(
    module: FakeQuantizedModule,
    proto: onnx.ModelProto,
    ranges: Ranges,
    target: Target,
    config: QatConfig,
) -> LearntRanges:
    """Return the ranges of every tensor that the writer may ask for, on the target's grid."""
    found = {name: ranges.range_of(name, target.grid) for name in activation_tensors(proto)}
    if config.ranges == "learnable":
        for name in module.quantized_tensors:
            found[name] = module.quantizer(name).range(target.grid == "s8")
    return LearntRanges(target.grid, found)
