"""Weights rounded so that the layer's output changes least, instead of each to its nearest step.

GPTQ (Frantar et al. 2022, arXiv:2210.17323; for convolutions, Optimal Brain Compression,
arXiv:2208.11580): one weight after the other is rounded, and what that changes in the output is
made good by the weights that follow, with the inverse of the inputs' second moments H = E x x'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor
from torch.nn import functional

from deploy_tools.artifacts import atomic_path
from deploy_tools.corrections.equalize import note_correction
from deploy_tools.corrections.layers import Layer, Parameters, attributes, layers_of
from deploy_tools.corrections.observe import Batches, Progress
from deploy_tools.onnx_files import load_onnx
from deploy_tools.quantization.prepare import prepared
from deploy_tools.training.onnx_module import OnnxModule

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

    nearest_db, learnt_db: of rounding to nearest and of this; None where the output is zero.
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
    moments = _moments(proto, layers, batches, config.positions, progress)
    report = []
    for done, layer in enumerate(layers, start=1):
        weight = torch.from_numpy(parameters.weight(layer))
        rounded, entry = _round_layer(layer, weight, moments.pop(layer.name), config)
        parameters.set_weight(layer, rounded.numpy())
        report.append(entry)
        if progress:
            progress("round weights", done, len(layers))
    note_correction(parameters.proto, "gptq")
    with atomic_path(path) as part:
        onnx.save(parameters.proto, str(part))
    return RoundReport(tuple(report))


def _moments(
    proto: onnx.ModelProto,
    layers: Sequence[Layer],
    batches: Batches,
    positions: int,
    progress: Progress | None,
) -> dict[str, Tensor]:
    """Return E x x' of every layer's input columns: (groups, K, K), K = in / groups * kernel."""
    module = OnnxModule(proto)
    kernels = {tensor.name: tuple(tensor.dims[2:]) for tensor in proto.graph.initializer}
    sums: dict[str, Tensor] = {}
    counts = {layer.name: 0 for layer in layers}
    done = 0
    with torch.inference_mode():
        for images in batches():
            values = module.values(torch.tensor(images), {layer.input for layer in layers})
            for layer in layers:
                kernel = kernels[layer.weight]
                columns = _columns(layer, kernel, values[layer.input], positions)
                columns = columns.reshape(layer.groups, -1, columns.shape[-1])
                square = columns @ columns.mT
                sums[layer.name] = sums[layer.name] + square if layer.name in sums else square
                counts[layer.name] += columns.shape[-1]
            done += len(images)
            if progress:
                progress("second moments", done, 0)
    return {name: total / max(counts[name], 1) for name, total in sums.items()}


def _columns(layer: Layer, kernel: tuple[int, ...], values: Tensor, positions: int) -> Tensor:
    """Return what one output value is made of, a column each: (in * kernel, columns)."""
    if layer.node.op_type != "Conv":
        return values.reshape(-1, values.shape[-1]).T
    given = attributes(layer.node)
    top, left, bottom, right = given.get("pads", [0] * 4)
    padded = functional.pad(values, (left, right, top, bottom))
    strides, dilations = given.get("strides", [1, 1]), given.get("dilations", [1, 1])
    found = functional.unfold(padded, kernel, dilation=dilations, stride=strides)
    width = (padded.shape[-1] - dilations[1] * (kernel[1] - 1) - 1) // strides[1] + 1
    every = max(1, math.ceil(found.shape[-1] / positions))
    while math.gcd(every, width) > 1:  # else it would stay in a few columns of the image
        every += 1
    return found[:, :, ::every].transpose(0, 1).flatten(1)


def _round_layer(
    layer: Layer, weight: Tensor, moments: Tensor, config: RoundConfig
) -> tuple[Tensor, RoundedLayer]:
    out = weight.shape[0]
    grouped = weight.double().reshape(layer.groups, out // layer.groups, -1)
    step = _steps(grouped, config)
    learnt = _gptq(grouped, moments.double(), step, config)
    nearest = torch.clamp(torch.round(grouped / step), -config.levels, config.levels) * step
    power = _energy(grouped, moments.double())
    entry = RoundedLayer(
        layer.name,
        _below(power, _energy(grouped - nearest, moments.double())),
        _below(power, _energy(grouped - learnt, moments.double())),
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
    size = weight.shape[2]
    diagonal = moments.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1, keepdim=True)
    # Inputs that were always zero say nothing: a one keeps H invertible.
    idle = torch.where(mean > 0, torch.zeros_like(diagonal), torch.ones_like(diagonal))
    damped = moments + torch.diag_embed(config.damping * mean.expand_as(diagonal) + idle)
    order = torch.argsort(diagonal, dim=1, descending=True, stable=True)
    rows = order.unsqueeze(2).expand(-1, -1, size)
    damped = damped.gather(1, rows).gather(2, rows.mT)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper = torch.linalg.cholesky(inverse, upper=True)
    columns = order.unsqueeze(1).expand(-1, weight.shape[1], -1)
    work = weight.gather(2, columns).clone()
    fixed = work.abs() >= step * (config.levels - 1e-4)  # makes the grid: it stays
    result = torch.empty_like(work)
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        errors = torch.empty_like(work[:, :, start:stop])
        for at in range(start, stop):
            now = work[:, :, at]
            whole = torch.clamp(torch.round(now / step[:, :, 0]), -config.levels, config.levels)
            original = torch.gather(weight, 2, columns[:, :, at : at + 1])[:, :, 0]
            kept = torch.where(fixed[:, :, at], original, whole * step[:, :, 0])
            result[:, :, at] = kept
            error = (now - kept) / upper[:, at, at].unsqueeze(1)
            errors[:, :, at - start] = error
            work[:, :, at:stop] -= error.unsqueeze(2) * upper[:, at, at:stop].unsqueeze(1)
        work[:, :, stop:] -= errors @ upper[:, start:stop, stop:]
    return torch.zeros_like(result).scatter(2, columns, result)


def _energy(weight: Tensor, moments: Tensor) -> float:
    """Return the mean square that these weights make of such inputs, summed over the outputs."""
    return float(torch.einsum("gok,gkl,gol->", weight, moments, weight))


def _below(power: float, error: float) -> float | None:
    return 10 * math.log10(power / error) if power > 0 and error > 0 else None


def _db(value: float | None) -> str:
    return "no error" if value is None else f"{value:.1f} dB"
