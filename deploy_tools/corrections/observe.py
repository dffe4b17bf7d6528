"""What the corrections need to know of the activations, in passes whose memory images do not grow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from deploy_tools.training.onnx_module import OnnxModule

Values = NDArray[np.float64]
Batches = Callable[[], Iterable[NDArray[np.float32]]]
"""Gives the calibration images anew, as preprocessed batches (N, C, H, W)."""
Progress = Callable[[str, int, int], None]


_IMAGES = 10_000
"""How many images the expected largest value of a channel is meant for."""

_SLOPES_BYTES = 1 << 30


@dataclass(frozen=True)
class ChannelValues:
    """Per channel of one tensor; (channels,).

    peak: the largest |x| that 10,000 images may be expected to show, at least the largest seen.
    The largest of each image is taken as Gumbel distributed, the law of maxima of light-tailed
    values: E max of n images = mean + std * sqrt(6) / pi * ln n. A few hundred images show too
    little of each single channel to take what they show for its range.
    mean_square: the mean of x * x. images: how many were seen.
    """

    peak: Values
    mean_square: Values
    images: int


class _Channels:
    """Running sums of one tensor's channels, over images in float64: their order leaves no trace."""

    def __init__(self, channels: int) -> None:
        zero = torch.zeros(channels, dtype=torch.float64)
        self._largest, self._sum, self._squares, self._energy = zero, zero, zero, zero
        self._images = self._values = 0

    def add(self, value: torch.Tensor) -> None:
        flat = _flat(value)
        low, high = torch.aminmax(flat, dim=2)
        each = torch.maximum(-low, high).double()
        self._largest = torch.maximum(self._largest, each.amax(0))
        self._sum = self._sum + each.sum(0)
        self._squares = self._squares + each.square().sum(0)
        self._energy = self._energy + _energy(flat)
        self._images += len(flat)
        self._values += flat.shape[0] * flat.shape[2]

    def values(self) -> ChannelValues:
        mean = self._sum / self._images
        spread = (self._squares / self._images - mean.square()).clamp_min(0).sqrt()
        expected = mean + spread * math.sqrt(6) / math.pi * math.log(_IMAGES)
        peak = torch.maximum(self._largest, torch.where(self._largest > 0, expected, mean))
        energy = self._energy / self._values
        return ChannelValues(peak.numpy(), energy.numpy(), self._images)


def observe_channels(
    module: OnnxModule, batches: Batches, tensors: Iterable[str], progress: Progress | None = None
) -> dict[str, ChannelValues]:
    """Return peak and mean square of each channel (axis 1) of these tensors."""
    names = list(dict.fromkeys(tensors))
    seen: dict[str, _Channels] = {}
    with torch.inference_mode():
        for images in _counted(batches, "observe channels", progress):
            for name, value in module.each_value(images, names):
                seen.setdefault(name, _Channels(value.shape[1])).add(value)
    return {name: seen[name].values() for name in names}


def importance_of_channels(
    module: OnnxModule,
    batches: Batches,
    tensors: Iterable[str],
    probes: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Values]:
    """Return, for each channel, the energy of the logits' derivative by its values.

    That is E |d logits / d x_c|^2, summed over the positions of the channel: white noise of
    variance v on the channel adds v times this to the squared error of the logits (first
    order). Estimated with Gaussian probes, E (d v.logits / d x_c)^2 over v ~ N(0, 1). A tensor
    that the logits do not depend on gets zeros. Slopes need every activation at once: a batch is
    taken in parts of so many images as 1 GiB holds, which changes sums in the last bits only.
    """
    names = list(dict.fromkeys(tensors))
    found: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    total = part = 0
    shape: tuple[int, ...] = ()
    for images in _counted(batches, "weigh channels", progress):
        total += len(images)
        if not part:
            size, shape = _kept_by_slopes(module, images[:1])
            part = max(1, _SLOPES_BYTES // size)
        # Drawn for the whole batch: its parts leave no trace.
        drawn = torch.stack(
            [torch.randn((len(images), *shape), generator=generator) for _ in range(probes)]
        )
        for start in range(0, len(images), part):
            some = slice(start, start + part)
            for name, energy in _slopes(module, images[some], names, drawn[:, some]):
                found[name] = found[name] + energy if name in found else energy
    return {name: (energy / max(total * probes, 1)).numpy() for name, energy in found.items()}


def _slopes(
    module: OnnxModule, images: torch.Tensor, names: Sequence[str], probes: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the energy of each tensor's slopes by channel, for each probe (probes, N, ...)."""
    images.requires_grad_(True)
    values = module.values(images, [*names, module.output_name])
    logits = values[module.output_name]
    wanted = [values[name] for name in names]
    for number, probe in enumerate(probes, start=1):
        slopes = torch.autograd.grad(
            (logits * probe).sum(), wanted, allow_unused=True, retain_graph=number < len(probes)
        )
        for name, value, slope in zip(names, wanted, slopes, strict=True):
            yield name, _energy(_flat(torch.zeros_like(value) if slope is None else slope))


def _kept_by_slopes(module: OnnxModule, image: torch.Tensor) -> tuple[int, tuple[int, ...]]:
    """Return the bytes of all activations of one image (1, C, H, W), and the shape of its logits.

    Slopes keep about as much again as the activations.
    """
    outputs = [node.outputs[0] for node in module.nodes]
    size = 0
    shape: tuple[int, ...] = ()
    with torch.inference_mode():
        for name, value in module.each_value(image, outputs):
            size += 2 * value.nbytes
            shape = tuple(value.shape[1:]) if name == module.output_name else shape
    return max(size, 1), shape


def _flat(value: torch.Tensor) -> torch.Tensor:
    """Return (N, C, positions)."""
    return value.flatten(2) if value.dim() > 2 else value.unsqueeze(2)


def _energy(flat: torch.Tensor) -> torch.Tensor:
    """Return the sum of the squares of each channel (C,): of an image in float32, then float64."""
    return flat.square().sum(2).double().sum(0)


def _counted(batches: Batches, what: str, progress: Progress | None) -> Iterator[torch.Tensor]:
    done = 0
    for images in batches():
        yield torch.from_numpy(np.array(images, np.float32))
        done += len(images)
        if progress:
            progress(what, done, 0)


def first_images(batches: Batches, count: int) -> Batches:
    """Return batches that end after `count` images."""

    def some() -> Iterator[NDArray[np.float32]]:
        left = count
        for images in batches():
            yield images[:left]
            left -= len(images)
            if left <= 0:
                return

    return some
