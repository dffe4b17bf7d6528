"""Weights rounded so that the layer's output changes least, instead of each to its nearest step.

GPTQ (Frantar et al. 2022, arXiv:2210.17323; for convolutions, Optimal Brain Compression,
arXiv:2208.11580): one weight after the other is rounded, and what that changes in the output is
made good by the weights that follow, with the inverse of the inputs' second moments H = E x x'.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from deploy_tools.artifacts import atomic_path
from deploy_tools.corrections.equalize import note_correction
from deploy_tools.corrections.layers import Layer, Parameters, layers_of
from deploy_tools.corrections.moments import second_moments
from deploy_tools.corrections.observe import Batches, Progress
from deploy_tools.onnx_files import load_onnx
from deploy_tools.quantization.prepare import prepared

_BLOCK = 128


@dataclass(frozen=True)
class RoundConfig:
    """levels: steps on each side of zero, 127, or 64 where the target has 7-bit weights.

    per_channel: one step an output channel, else one a tensor. damping: added to H's diagonal,
    as a share of its mean. positions: at most so many of an image's positions are used.
    """

    levels: int = 127
    per_channel: bool = True
    damping: float = 0.01
    positions: int = 256
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class RoundedLayer:
    """One layer: how many dB the rounding error of its output lies below its output.

    nearest_db, learnt_db: of rounding to nearest and of this; None where the output or the error is
    zero.
    """

    layer: str
    nearest_db: float | None
    learnt_db: float | None


@dataclass(frozen=True)
class RoundReport:
    """What was rounded, layer by layer."""

    layers: tuple[RoundedLayer, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"layers": [asdict(layer) for layer in self.layers]}

    def __str__(self) -> str:
        rows = [
            f"{one.layer}: {_db(one.nearest_db)} -> {_db(one.learnt_db)}" for one in self.layers
        ]
        return "\n".join(rows)


def rounded_from_onnx(
    model: Path,
    batches: Batches,
    path: Path,
    config: RoundConfig | None = None,
    progress: Progress | None = None,
) -> RoundReport:
    """Write the float file `model` to `path` with weights on the grid that INT8 will have.

    The largest weight of each channel keeps its value, so the grid that the Q/DQ writer takes
    from the file is the one used here. Memory: one second moment matrix a layer, whatever the
    number of images. Raises UserError for a graph that torch cannot run here.
    """
    config = config or RoundConfig()
    proto = prepared(load_onnx(model))
    parameters = Parameters(proto)
    layers = [layer for layer in layers_of(proto) if layer.name not in config.exclude]
    moments = second_moments(proto, layers, batches, config.positions, progress)
    report = []
    for done, layer in enumerate(layers, start=1):
        weight = torch.from_numpy(parameters.weight(layer))
        rounded, entry = _round_layer(layer, weight, moments.pop(layer.name).mean(), config)
        parameters.set_weight(layer, rounded.numpy())
        report.append(entry)
        if progress:
            progress("round weights", done, len(layers))
    note_correction(parameters.proto, "gptq")
    with atomic_path(path) as part:
        onnx.save(parameters.proto, str(part))
    return RoundReport(tuple(report))


def _round_layer(
    layer: Layer, weight: Tensor, moments: Tensor, config: RoundConfig
) -> tuple[Tensor, RoundedLayer]:
    out = weight.shape[0]
    grouped = weight.double().reshape(layer.groups, out // layer.groups, -1)
    step = _steps(grouped, config)
    learnt = _gptq(grouped, moments, step, config)
    nearest = torch.clamp(torch.round(grouped / step), -config.levels, config.levels) * step
    exact = moments.double()
    power = _energy(grouped, exact)
    entry = RoundedLayer(
        layer.name,
        _below(power, _energy(grouped - nearest, exact)),
        _below(power, _energy(grouped - learnt, exact)),
    )
    return learnt.reshape(weight.shape).float(), entry


def _steps(weight: Tensor, config: RoundConfig) -> Tensor:
    """Return the step of each output channel, (groups, out / groups, 1); 1 where all is zero."""
    peak = weight.abs().amax(2, keepdim=True)
    if not config.per_channel:
        peak = peak.amax().expand_as(peak)
    return torch.where(peak > 0, peak / config.levels, torch.ones_like(peak))


def _gptq(weight: Tensor, moments: Tensor, step: Tensor, config: RoundConfig) -> Tensor:
    """Return the rounded weights. weight: (G, O, K); moments: (G, K, K); step: (G, O, 1)."""
    order, upper = _inverse_factor(moments, config.damping)
    columns = order.unsqueeze(1).expand(-1, weight.shape[1], -1)
    # (G, K, O): all that one step reads and writes lies together in memory.
    given = weight.gather(2, columns).mT.contiguous()
    steps = step.squeeze(2)
    fixed = given.abs() >= steps.unsqueeze(1) * (config.levels - 1e-4)  # makes the grid: it stays
    work, result = given.clone(), torch.empty_like(given)
    size = weight.shape[2]
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        errors = torch.empty_like(work[:, start:stop])
        for at in range(start, stop):
            now = work[:, at]
            whole = (now / steps).round_().clamp_(-config.levels, config.levels)
            kept = torch.where(fixed[:, at], given[:, at], whole.mul_(steps))
            result[:, at] = kept
            error = (now - kept) / upper[:, at, at].unsqueeze(1)
            errors[:, at - start] = error
            ahead = upper[:, at, at + 1 : stop].unsqueeze(2)
            work[:, at + 1 : stop].baddbmm_(ahead, error.unsqueeze(1), alpha=-1)
        work[:, stop:].baddbmm_(upper[:, start:stop, stop:].mT, errors, alpha=-1)
    return torch.empty_like(weight).scatter(2, columns, result.mT)


def _inverse_factor(moments: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Return the order of the inputs, strongest first, (G, K), and U with U'U = H^-1, (G, K, K).

    In that order, and with damping on its diagonal, H = R R' with R upper triangular (Cholesky
    from the other end); then U = R^-1.
    """
    diagonal = moments.diagonal(dim1=1, dim2=2).double()
    mean = diagonal.mean(1, keepdim=True)
    # Inputs that were always zero say nothing: a one keeps H invertible.
    idle = torch.where(mean > 0, torch.zeros_like(diagonal), torch.ones_like(diagonal))
    order = torch.argsort(diagonal, dim=1, descending=True, stable=True)
    size = order.shape[1]
    backwards = order.flip(1)
    rows = backwards.unsqueeze(2).expand(-1, -1, size)
    damped = moments.gather(1, rows).gather(2, rows.mT).double()
    more = (damping * mean.expand_as(diagonal) + idle).gather(1, backwards)
    damped.diagonal(dim1=1, dim2=2).add_(more)
    factor = torch.linalg.cholesky(damped).flip(1, 2)
    unit = torch.eye(size, dtype=factor.dtype).expand_as(factor)
    return order, torch.linalg.solve_triangular(factor, unit, upper=True)


def _energy(weight: Tensor, moments: Tensor) -> float:
    """Return the mean square that these weights make of such inputs, summed over the outputs.

    In float64: where inputs go together a rounding error nearly vanishes in the sum, and what
    float32 leaves of it may be zero or less.
    """
    return float(((weight @ moments) * weight).sum())


def _below(power: float, error: float) -> float | None:
    return 10 * math.log10(power / error) if power > 0 and error > 0 else None


def _db(value: float | None) -> str:
    return "no error" if value is None else f"{value:.1f} dB"
