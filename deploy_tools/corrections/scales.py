"""The channel factors with the least quantization noise in the logits.

Noise model: rounding adds white noise of variance step^2 / 12 (Widrow). An activation tensor
has one step for all channels, so a channel scaled up by f keeps 1 / f^2 of that noise; the step
grows with the largest scaled channel. A weight's step grows with the largest weight of its
output channel (or of the tensor) after its input channels were divided by their factors. Both
are weighed with what they do to the logits (`observe.importance_of_channels`). Cross-layer
equalization (Nagel et al. 2019, arXiv:1906.04721) balances weight ranges alone; SmoothQuant
(Xiao et al. 2023, arXiv:2211.10438) trades activation against weight ranges by one exponent;
here the trade is minimized directly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_STEPS = 400
_RATE = 0.03
_NORM = 12.0  # the largest channel as a p-norm; four times as sharp in the second half
_LIMIT = math.log(256.0)
_SMALL = 2_000_000  # weights' channel pairs


@dataclass(frozen=True)
class ActivationNoise:
    """A quantized tensor. ids, peak, importance: (channels,)."""

    ids: NDArray[np.int64]
    peak: NDArray[np.float64]
    importance: NDArray[np.float64]


@dataclass(frozen=True)
class WeightNoise:
    """A quantized layer.

    peaks: (out, in / groups), largest |w| over the kernel's positions. ids_in: (in,),
    ids_out, importance: (out,). mean_square: (in,), of its input. positions: of the kernel.
    """

    peaks: NDArray[np.float64]
    ids_in: NDArray[np.int64]
    ids_out: NDArray[np.int64]
    importance: NDArray[np.float64]
    mean_square: NDArray[np.float64]
    groups: int
    positions: int


@dataclass(frozen=True)
class Noise:
    """Predicted squared error of the logits of an image."""

    activations: float
    weights: float


def least_noise_factors(
    activations: Sequence[ActivationNoise],
    weights: Sequence[WeightNoise],
    free: NDArray[np.bool_],
    per_channel: bool = True,
    weight_share: float = 1.0,
    smallest: float = 1e-3,
) -> tuple[NDArray[np.float64], Noise, Noise]:
    """Return the factors, (ids,), 1 where not free, and the noise before and after.

    weight_share: how much of rounding to nearest's noise the weights keep; less than 1 where
    their rounding is learnt. smallest: a channel's peak counts as at least this share of its
    tensor's largest, since what seems small may be larger on other images.
    """
    alive = free & _seen(activations, len(free))
    mask = torch.from_numpy(alive.astype(np.float64))
    model = _Model(
        [_Activation(one, smallest) for one in activations if one.peak.max(initial=0) > 0],
        [_Layer(one, per_channel) for one in weights],
    )
    logs = torch.zeros(len(free), dtype=torch.float64, requires_grad=True)
    before = model.noise(torch.zeros_like(logs))
    if not model.activations or not alive.any():
        return np.ones(len(free)), before, before
    with _few_threads(sum(layer.log_peaks.numel() for layer in model.layers)):
        _descend(model, logs, mask, weight_share)
    final = (logs * mask).detach()
    after = model.noise(final)
    if after.activations + weight_share * after.weights >= (
        before.activations + weight_share * before.weights
    ):
        return np.ones(len(free)), before, before
    return final.exp().numpy(), before, after


@contextmanager
def _few_threads(weights: int) -> Iterator[None]:
    """One thread for small networks: to share their sums out takes five times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if weights < _SMALL else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _descend(model: _Model, logs: Tensor, mask: Tensor, weight_share: float) -> None:
    optimizer = torch.optim.Adam([logs], lr=_RATE)
    for step in range(_STEPS):
        norm = _NORM if step < _STEPS // 2 else 4 * _NORM
        part_a, part_w = model.sums(logs * mask, norm)
        loss = torch.log(part_a + weight_share * part_w + 1e-300)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            logs.clamp_(-_LIMIT, _LIMIT)


def _seen(activations: Sequence[ActivationNoise], count: int) -> NDArray[np.bool_]:
    """Ids of which a value other than zero was seen: a dead channel keeps its factor."""
    seen = np.zeros(count, bool)
    for one in activations:
        seen[one.ids[one.peak > 0]] = True
    return seen


class _Activation:
    def __init__(self, one: ActivationNoise, smallest: float) -> None:
        self.ids = torch.from_numpy(one.ids)
        peak = np.maximum(one.peak, smallest * one.peak.max())
        self.log_peak = torch.from_numpy(np.log(peak))
        self.importance = torch.from_numpy(one.importance)

    def noise(self, mine: Tensor, norm: float) -> Tensor:
        """mine: the logs of its channels' factors, (channels,)."""
        top = _largest(self.log_peak + mine, norm, 0)
        share = self.importance * torch.exp(-2 * mine)
        return torch.exp(2 * top) * share.sum() / (12 * 255.0**2)


class _Layer:
    def __init__(self, one: WeightNoise, per_channel: bool) -> None:
        # One row a group; gathering a row for each output is what would take most of the time.
        self.ids_in = torch.from_numpy(one.ids_in)
        self.mean_square = torch.from_numpy(one.mean_square.reshape(one.groups, -1))
        self.ids_out = torch.from_numpy(one.ids_out)
        self.log_peaks = torch.from_numpy(np.log(np.maximum(one.peaks, 1e-30)))
        self.row_peaks = self.log_peaks.amax(1)
        self._powers, self._norm = torch.empty(0), 0.0
        self.importance = torch.from_numpy(one.importance)
        self.positions = one.positions
        self.repeats = len(one.ids_out) // one.groups if one.groups > 1 else 1
        self.per_channel = per_channel

    def noise(self, into: Tensor, out: Tensor, norm: float) -> Tensor:
        """into, out: the logs of the factors of its input and output channels."""
        into = into.reshape(self.mean_square.shape)  # (groups, in / groups)
        top = self._tops(into, norm)
        if not self.per_channel:  # one step for all: the largest after scaling, seen from each
            top = _largest(top + out, norm, 0) - out
        power = self._each((self.mean_square * torch.exp(2 * into)).sum(1) * self.positions)
        return (self.importance * torch.exp(2 * top) * power).sum() / (12 * 127.0**2)

    def _tops(self, into: Tensor, norm: float) -> Tensor:
        """Return log max_i w_oi / f_i for each output (out,), or that of the p-norm over i.

        (sum_i (w_oi / f_i)^p)^(1/p) is a product of the fixed matrix w^p, here in units of each
        row's largest w, with the vector f^-p: much less work than a sum of exponentials. What
        underflows in w^p is far below that largest, whatever the factors within their limit.
        """
        if math.isinf(norm):
            return (self.log_peaks - self._each(into)).amax(1)
        if norm != self._norm:
            powers = torch.exp(norm * (self.log_peaks - self.row_peaks.unsqueeze(1)))
            self._powers = powers.reshape(len(into), -1, into.shape[1])
            self._norm = norm
        factors = torch.exp(-norm * into)
        if len(into) == 1:
            sums = self._powers[0] @ factors[0]
        else:
            sums = (self._powers @ factors.unsqueeze(2)).reshape(-1)
        return self.row_peaks + torch.log(sums) / norm

    def _each(self, values: Tensor) -> Tensor:
        """Return the values of each output's group; one group is broadcast."""
        return values if self.repeats == 1 else values.repeat_interleave(self.repeats, 0)


def _largest(values: Tensor, norm: float, axis: int) -> Tensor:
    if math.isinf(norm):
        return values.amax(axis)
    return torch.logsumexp(norm * values, axis) / norm


class _Model:
    """The noise of all tensors and layers together.

    All take their channels' factors in one gather: the gradient of each gather is as long as all
    factors together, so that one a tensor would take time by the square of the depth.
    """

    def __init__(self, activations: Sequence[_Activation], layers: Sequence[_Layer]) -> None:
        self.activations, self.layers = activations, layers
        ids = [one.ids for one in activations]
        ids += [each for one in layers for each in (one.ids_in, one.ids_out)]
        self._ids = torch.cat([torch.zeros(0, dtype=torch.int64), *ids])
        self._sizes = [len(one) for one in ids]

    def sums(self, logs: Tensor, norm: float) -> tuple[Tensor, Tensor]:
        """Return the noise of the activations and that of the weights."""
        parts = iter(torch.split(logs[self._ids], self._sizes))
        first = [one.noise(next(parts), norm) for one in self.activations]
        second = [one.noise(next(parts), next(parts), norm) for one in self.layers]
        return _total(first), _total(second)

    def noise(self, logs: Tensor) -> Noise:
        """Return the noise with the true largest values, not their p-norms."""
        with torch.no_grad():
            first, second = self.sums(logs, math.inf)
        return Noise(float(first), float(second))


def _total(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([torch.zeros((), dtype=torch.float64), *values]).sum()


def decibels_less(before: Noise, after: Noise, weight_share: float = 1.0) -> float:
    """Return how many dB less noise there is after; 0 where there was none before."""
    first, second = (one.activations + weight_share * one.weights for one in (before, after))
    return 10 * math.log10(first / second) if first > 0 and second > 0 else 0.0
