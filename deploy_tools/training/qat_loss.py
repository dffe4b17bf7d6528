"""The losses of QAT, and how near two sets of logits are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from deploy_tools.training.qat_config import QatConfig

_TINY = 1e-12


def relative_error(logits: Tensor, teacher: Tensor) -> Tensor:
    """Return the energy of the difference over the energy of the teacher's logits, a scalar."""
    return (logits - teacher).square().sum() / teacher.square().sum().clamp(min=_TINY)


def sqnr_db(logits: Tensor, teacher: Tensor) -> float:
    """Return -10 log10 of `relative_error`, at most 120 dB (equal logits)."""
    return float(-10 * torch.log10(relative_error(logits, teacher).clamp(min=_TINY)))


def agreement(logits: Tensor, teacher: Tensor) -> float:
    """Return the share of images with the same prediction."""
    return float((logits.argmax(1) == teacher.argmax(1)).float().mean())


def qat_loss(logits: Tensor, teacher: Tensor, labels: Tensor, config: QatConfig) -> Tensor:
    """Return the weighted sum of distillation and cross-entropy, a scalar.

    logits, teacher: (N, classes). labels: (N,), read only where labels_weight is above 0.
    """
    loss = logits.new_zeros(())
    if config.distil == "mse":
        loss = loss + config.distil_weight * relative_error(logits, teacher)
    elif config.distil == "kl":
        loss = loss + config.distil_weight * _divergence(logits, teacher, config.temperature)
    if config.labels_weight:
        loss = loss + config.labels_weight * functional.cross_entropy(logits, labels)
    return loss


def _divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) at a temperature, times its square (Hinton et al. 2015, section 2)."""
    ours = functional.log_softmax(logits / temperature, 1)
    theirs = functional.log_softmax(teacher / temperature, 1)
    divergence = functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return divergence * temperature**2
