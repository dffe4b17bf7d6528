"""Biases that give each layer of the quantized model the mean output of the float one.

Rounding and clipping shift the mean of what a layer writes; the shift passes through all that
follows (Nagel et al. 2019, arXiv:1906.04721, section 4.2, there from BatchNorm's statistics,
here from calibration images, as its appendix D does). Layers are corrected one after the other,
each on inputs that come from the corrected ones before it, in one walk through the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from deploy_tools.artifacts import atomic_path
from deploy_tools.corrections.equalize import note_correction
from deploy_tools.corrections.layers import Layer, Parameters, layers_of
from deploy_tools.corrections.observe import Batches, Progress, first_images
from deploy_tools.errors import UserError
from deploy_tools.onnx_files import load_onnx
from deploy_tools.quantization.prepare import prepared
from deploy_tools.training.onnx_module import OnnxModule


@dataclass(frozen=True)
class BiasConfig:
    """images: how many calibration images; all their activations at one place of the graph are
    in memory at a time.
    """

    images: int = 64


@dataclass(frozen=True)
class CorrectedBias:
    """One layer: the root mean square of its shift over the channels, in units of its output's."""

    layer: str
    shift: float


@dataclass(frozen=True)
class BiasReport:
    """What was corrected, layer by layer, and the layers that have no bias to correct."""

    layers: tuple[CorrectedBias, ...]
    without_bias: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def bias_corrected_from_onnx(
    model: Path,
    quantized: Path,
    batches: Batches,
    path: Path,
    config: BiasConfig | None = None,
    progress: Progress | None = None,
    reference: Path | None = None,
) -> BiasReport:
    """Write the float file `model` to `path` with biases corrected for `quantized`.

    quantized: the Q/DQ file written from `model`; write it again from `path` with the same
    ranges. reference: the float file before its weights were rounded, whose means are wanted;
    `model` where it is not given. Raises UserError where the files do not belong together.
    """
    config = config or BiasConfig()
    proto = prepared(load_onnx(model))
    floats, ints = OnnxModule(load_onnx(reference or model)), OnnxModule(load_onnx(quantized))
    parts = [torch.tensor(b) for b in first_images(batches, config.images)()]
    layers = {layer.name: layer for layer in layers_of(proto)}
    wanted = _means(floats, layers, parts, progress)
    shifts = _Corrected(ints, layers, wanted).walk(parts, progress)
    parameters = Parameters(proto)
    entries, without = [], []
    for name, layer in layers.items():
        bias = parameters.bias(layer)
        if bias is None:
            without.append(name)
        elif name in shifts:
            shift = shifts[name].numpy()
            parameters.set_bias(layer, bias + shift)
            scale = float(wanted[name][1]) or 1.0
            entries.append(CorrectedBias(name, float(np.sqrt(np.mean(shift**2)) / scale)))
    if len(entries) + len(without) < len(layers):
        raise UserError(f"{quantized} has no layer of {model}.", "Write it from that file.")
    note_correction(parameters.proto, "bias")
    with atomic_path(path) as part:
        onnx.save(parameters.proto, str(part))
    return BiasReport(tuple(entries), tuple(without))


def _means(
    module: OnnxModule,
    layers: dict[str, Layer],
    parts: Sequence[Tensor],
    progress: Progress | None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return, by layer, the mean of each output channel and the root mean square of them all."""
    sums: dict[str, list[Tensor]] = {}
    named = {layer.output: name for name, layer in layers.items()}
    with torch.inference_mode():
        for done, images in enumerate(parts, start=1):
            for output, found in module.each_value(images, named.keys()):
                value = found.double()
                sums.setdefault(named[output], []).append(
                    torch.cat([_mean(value), value.square().mean().reshape(1)]) * len(images)
                )
            if progress:
                progress("mean outputs", done, len(parts))
    count = sum(len(part) for part in parts)
    means = {name: torch.stack(each).sum(0) / count for name, each in sums.items()}
    return {name: (mean[:-1], mean[-1].sqrt()) for name, mean in means.items()}


def _mean(value: Tensor) -> Tensor:
    """Return the mean of each channel of (N, C, ...)."""
    return value.transpose(0, 1).flatten(1).mean(1)


class _Corrected:
    """Walks the quantized graph node by node with all images, correcting layers as it goes."""

    def __init__(
        self,
        module: OnnxModule,
        layers: dict[str, Layer],
        wanted: dict[str, tuple[Tensor, Tensor]],
    ) -> None:
        self._module = module
        self._layers = layers
        self._wanted = wanted

    def walk(self, parts: Sequence[Tensor], progress: Progress | None) -> dict[str, Tensor]:
        """Return by how much to raise each layer's bias, (out,)."""
        shifts: dict[str, Tensor] = {}
        module = self._module
        last = {name: at for at, node in enumerate(module.nodes) for name in node.inputs}
        with torch.inference_mode():
            values = [module._start(images) for images in parts]
            for at, node in enumerate(module.nodes):
                found = [
                    module.run_node(at, [one[name] if name else None for name in node.inputs])
                    for one in values
                ]
                layer = self._layers.get(node.name)
                if layer is not None and layer.bias:
                    shifts[node.name] = self._shift(node.name, found)
                    found = [_raised(value, shifts[node.name]) for value in found]
                for one, value in zip(values, found, strict=True):
                    one[node.outputs[0]] = value
                    for name in node.inputs:
                        if last[name] == at:
                            one.pop(name, None)
                if progress:
                    progress("correct biases", at + 1, len(module.nodes))
        return shifts

    def _shift(self, name: str, found: Sequence[Tensor]) -> Tensor:
        sizes = torch.tensor([float(len(value)) for value in found]).double()
        means = torch.stack([_mean(value.double()) for value in found])
        return self._wanted[name][0] - (means * sizes.unsqueeze(1)).sum(0) / sizes.sum()


def _raised(value: Tensor, shift: Tensor) -> Tensor:
    return value + shift.to(value.dtype).reshape(1, -1, *[1] * (value.dim() - 2))
