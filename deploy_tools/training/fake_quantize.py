"""A Q/DQ file as a torch module that can be trained: the same roundings, with gradients.

The forward pass computes what the file says. Backward, rounding is the identity inside the range
(straight-through estimator, Bengio et al. 2013, arXiv:1308.3432, section 3), and a learnable
scale has the gradient of LSQ (Esser et al. 2020, arXiv:1902.08153, section 2.1).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from deploy_tools.quantization.dead_channels import FALLBACK

_EXACT_BITS = 16
_TINY = torch.finfo(torch.float32).tiny


class _FakeQuantize(torch.autograd.Function):
    """round(x / scale) + zero-point, clamped, and back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: int, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.ends = (low - zero_point, high - zero_point)
        return torch.round(x / scale).clamp_(*ctx.ends).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, scale = ctx.saved_tensors
        steps = x / scale
        clipped = steps.clamp(*ctx.ends)
        inside = clipped == steps
        of_scale = None
        if ctx.needs_input_grad[1]:
            # d/ds: round(x/s) - x/s inside the range, its end outside (LSQ, equation 3).
            slope = torch.round(clipped).sub_(steps.mul_(inside))
            features = x[0].numel() * ctx.ends[1]
            of_scale = (gradient * slope).sum() / math.sqrt(max(features, 1))
        return gradient * inside, of_scale, None, None, None


class _StraightThrough(torch.autograd.Function):
    """The second tensor forward, the gradient to the first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:
        return rounded.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """Return `rounded`; its gradient goes to `x` unchanged."""
    result: Tensor = _StraightThrough.apply(x, rounded)
    return result


def exact(scale: Tensor) -> Tensor:
    """Round positive scales to 16 significant bits; the gradient passes.

    A scale times any 8-bit whole number is then exact in float32, so the writer, which computes
    scales again from ranges and largest weights, comes to the very same scale.
    """
    with torch.no_grad():
        mantissa, exponent = torch.frexp(scale)
        rounded = torch.round(mantissa * 2**_EXACT_BITS) / 2**_EXACT_BITS
        # In two halves: 2 to the exponent alone can lie outside float32.
        half = torch.div(exponent, 2, rounding_mode="floor")
        rounded = torch.ldexp(torch.ldexp(rounded, half), exponent - half)
    return straight_through(scale, rounded)


class ActivationQuantizer(nn.Module):
    """Fake-quantizes one tensor with one scale and zero-point.

    scale: float32, above 0. zero_point, low, high: whole numbers of the 8-bit type.
    learnable: the logarithm of the scale is a Parameter. Its zero-point stays, so that zero, to
    which convolutions pad, is exact whatever the scale becomes.
    """

    def __init__(self, scale: float, zero_point: int, low: int, high: int, learnable: bool) -> None:
        super().__init__()
        self.zero_point, self.low, self.high = zero_point, low, high
        self.start: Tensor
        self.register_buffer("start", torch.tensor(scale, dtype=torch.float32))
        self.log_change = nn.Parameter(torch.zeros(())) if learnable else None

    def scale(self) -> Tensor:
        """Return the scale, a scalar."""
        if self.log_change is None:
            return self.start
        return exact(self.start * torch.exp(self.log_change))

    def range(self, symmetric: bool) -> tuple[float, float]:
        """Return the real values (low, high) at the ends of the grid.

        symmetric: the writer's symmetric int8 grid, which leaves -128 out.
        """
        low = -self.high if symmetric else self.low - self.zero_point
        scale = float(self.scale().detach())
        return low * scale, (self.high - self.zero_point) * scale

    def forward(self, x: Tensor) -> Tensor:
        """Return the values on the grid, same shape."""
        result: Tensor = _FakeQuantize.apply(x, self.scale(), self.zero_point, self.low, self.high)
        return result


def largest(weight: Tensor, axis: int | None) -> Tensor:
    """Return max |w| of each channel along `axis`, shape (channels,), or of all, shape ()."""
    size = weight.detach().abs()
    if axis is None:
        return size.amax()
    return size.movedim(axis, 0).flatten(1).amax(1)


def grid_scale(weight: Tensor, axis: int | None, levels: int) -> Tensor:
    """Return the scale max |w| / levels, a channel or a tensor, as the writer chooses it.

    All-zero channels have the largest of the others, as `dead_channels` gives them; an all-zero
    tensor has scale 1 and, a channel, `dead_channels.FALLBACK`. Rounded by `exact`.
    """
    scale = exact((largest(weight, axis).double() / levels).float())
    dead = scale < _TINY
    if axis is None:
        return torch.where(dead, torch.ones_like(scale), scale)
    fill = torch.full_like(scale, FALLBACK) if dead.all() else scale.max().expand_as(scale)
    return torch.where(dead, fill, scale)


def scale_for_bias(scale: Tensor, bias: Tensor, input_scale: Tensor) -> Tensor:
    """Raise weight scales where the bias would not fit into int32; as the writer does it.

    scale: (channels,) or () for one a tensor. bias: (channels,). The bias's own scale is
    input_scale * scale.
    """
    size = bias.detach().abs().double()
    smallest = 1.0001 * 2.0 * (size if scale.ndim else size.amax()) / (2.0**32 - 2)
    candidate = input_scale.detach().double() * scale.double()
    short = (candidate < smallest) & (candidate > 0)
    return torch.where(short, scale.double() * (smallest / candidate), scale.double()).float()


def on_grid(weight: Tensor, scale: Tensor, levels: int) -> Tensor:
    """Round to whole multiples of `scale`, which broadcasts; no gradient."""
    with torch.no_grad():
        return torch.round(weight / scale).clamp(-levels - 1, levels) * scale


def bias_on_grid(bias: Tensor, scale: Tensor) -> Tensor:
    """Round a bias to int32 multiples of `scale` and back to float32; no gradient.

    float64, because int32 is not exact in float32; the last two steps are DequantizeLinear's.
    """
    with torch.no_grad():
        whole = torch.round(bias.double() / scale.double()).clamp(-(2.0**31), 2.0**31 - 1)
        return whole.float() * scale
