"""Scale channels against each other so that INT8 costs the logits least; the model stays the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from deploy_tools.artifacts import atomic_path
from deploy_tools.corrections.channels import Channels, channels_of, scaled
from deploy_tools.corrections.layers import Layer, Parameters, layers_of
from deploy_tools.corrections.observe import (
    Batches,
    ChannelValues,
    Progress,
    Values,
    first_images,
    importance_of_channels,
    observe_channels,
)
from deploy_tools.corrections.scales import (
    ActivationNoise,
    WeightNoise,
    decibels_less,
    least_noise_factors,
)
from deploy_tools.onnx_files import load_onnx
from deploy_tools.quantization.prepare import prepared
from deploy_tools.training.onnx_module import OnnxModule

_TRUST = 4.0
"""Peaks of n images are told apart down to 4 / sqrt(n) of the largest. Chosen on held-out training
images of the Fashion-MNIST and CIFAR-10 ResNet-20 with 48 and 500 images: without it 48 images
cost 1 dB more."""

CORRECTIONS_KEY = "deploy_tools.corrections"


@dataclass(frozen=True)
class EqualizeConfig:
    """per_channel: how the weights will be quantized. importance_images: how many images weigh
    the channels. weight_share: the part of rounding to nearest's noise that the weights keep;
    0.25 is about what learnt rounding leaves. exclude: layers, by node name, that stay in float.
    """

    per_channel: bool = True
    importance_images: int = 64
    weight_share: float = 1.0
    seed: int = 0
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class EqualizeReport:
    """scaled_channels: how many of `channels` got another factor. predicted_gain_db: of the
    logits' SQNR, by the noise model, at the weights' share. largest_factor, smallest_factor: of all channels.
    """

    channels: int
    scaled_channels: int
    predicted_gain_db: float
    smallest_factor: float
    largest_factor: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def equalized_from_onnx(
    model: Path,
    tensors: Iterable[str],
    batches: Batches,
    path: Path,
    config: EqualizeConfig | None = None,
    progress: Progress | None = None,
) -> EqualizeReport:
    """Write the float file `model` with its channels rescaled to `path`.

    tensors: the activations that will be quantized. batches: calibration images.
    The logits stay the same up to float rounding. Raises UserError for a graph that torch
    cannot run here (`OnnxModule`).
    """
    config = config or EqualizeConfig()
    proto = prepared(load_onnx(model))
    channels = channels_of(proto)
    layers = layers_of(proto)
    module = OnnxModule(proto)
    known = [t for t in dict.fromkeys(tensors) if len(channels.ids.get(t, ())) > 0]
    inputs = [layer.input for layer in layers]
    seen = observe_channels(module, batches, [*known, *inputs], progress)
    importance = importance_of_channels(
        module, first_images(batches, config.importance_images),
        [*known, *(layer.output for layer in layers)], seed=config.seed, progress=progress,
    )  # fmt: skip
    images = max((seen[tensor].images for tensor in known), default=0)
    factors, before, after = least_noise_factors(
        [ActivationNoise(channels.ids[t], seen[t].peak, importance[t]) for t in known],
        _weights(
            proto, [x for x in layers if x.name not in config.exclude], channels, seen, importance
        ),
        channels.free,
        config.per_channel,
        config.weight_share,
        smallest=min(1.0, _TRUST / math.sqrt(max(images, 1))),
    )
    if progress:
        progress("balance channels", len(factors), len(factors))
    result = scaled(proto, channels, factors)
    note_correction(result, "equalize")
    with atomic_path(path) as part:
        onnx.save(result, str(part))
    return EqualizeReport(
        channels=len(factors),
        scaled_channels=int((np.abs(np.log(factors)) > 1e-6).sum()),
        predicted_gain_db=decibels_less(before, after, config.weight_share),
        smallest_factor=float(factors.min(initial=1.0)),
        largest_factor=float(factors.max(initial=1.0)),
    )


def note_correction(proto: onnx.ModelProto, name: str) -> None:
    """Add a correction to the list that the file's metadata keeps, and sort the metadata."""
    metadata = {prop.key: prop.value for prop in proto.metadata_props}
    before = [text for text in metadata.get(CORRECTIONS_KEY, "").split(",") if text]
    metadata[CORRECTIONS_KEY] = ",".join([*before, name])
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, dict(sorted(metadata.items())))


def _weights(
    proto: onnx.ModelProto,
    layers: Sequence[Layer],
    channels: Channels,
    seen: dict[str, ChannelValues],
    importance: dict[str, Values],
) -> list[WeightNoise]:
    parameters = Parameters(proto)
    found = []
    for layer in layers:
        if layer.input not in channels.ids or layer.output not in channels.ids:
            continue
        weight = parameters.weight(layer)
        counts = len(channels.ids[layer.output]), len(channels.ids[layer.input])
        if counts != (weight.shape[0], weight.shape[1] * layer.groups):
            continue  # a MatMul along another axis than the channels
        found.append(
            WeightNoise(
                np.abs(weight).max(2).astype(np.float64),
                channels.ids[layer.input],
                channels.ids[layer.output],
                importance[layer.output],
                seen[layer.input].mean_square,
                layer.groups,
                weight.shape[2],
            )
        )
    return found
