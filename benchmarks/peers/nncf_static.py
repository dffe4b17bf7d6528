"""NNCF's post-training quantization, of the ONNX file and of the OpenVINO model read from it.

`nncf.quantize` with its presets, and `nncf.quantize_with_accuracy_control`, which puts layers
back to float until a metric on held-out images is good enough. The format follows the path's
ending: .onnx, or .xml for what OpenVINO's users do with OpenVINO's own API.

The batch is a setting, not a detail: NNCF takes the mean over batches of each batch's extremes,
so one image a call, which its documentation recommends, clips far more than 50 do.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.base import EXTRA, Images, Job
from deploy_tools.artifacts import atomic_path
from deploy_tools.errors import UserError, require

PRESETS = ("performance", "mixed")
CORRECTIONS = ("fast", "accurate", "none")
"""Of biases: its default, `fast_bias_correction=False`, and `disable_bias_correction`."""
_WHAT = "NNCF's quantization"
_VALIDATION_BATCH = 50


def load() -> None:
    """Import the tool and what it quantizes."""
    require("nncf", EXTRA, _WHAT)
    require("openvino", EXTRA, _WHAT)
    require("nncf.onnx.engine", EXTRA, _WHAT)


def quantize(
    job: Job,
    path: Path,
    preset: str = "performance",
    batch: int = 1,
    correction: str = "fast",
    per_channel: bool = True,
    max_drop: float | None = None,
) -> None:
    """Write NNCF's INT8 model of `job.model` to `path`, .onnx or .xml.

    preset: "performance" (symmetric activations) or "mixed" (affine ones). correction: one of
        CORRECTIONS. per_channel: False is one weight scale a tensor.
    max_drop: accuracy control: how much of the agreement with FP32 on the job's held-out images
        may be lost, a fraction; None is plain quantization.
    """
    import nncf

    if preset not in PRESETS or correction not in CORRECTIONS:
        raise UserError(f'NNCF has no preset "{preset}" with bias correction "{correction}".')
    if max_drop is not None and not job.held_out:
        raise UserError("accuracy control needs held-out images and the job has none.")
    nncf.set_log_level(logging.ERROR)
    as_onnx = path.suffix == ".onnx"
    model = _read(job.model, as_onnx)
    calibration = nncf.Dataset(job.images(batch), _feed(job, as_onnx))
    options = _options(preset, correction, len(job.images(batch)))
    advanced = _advanced(correction, per_channel)
    if max_drop is None:
        made = nncf.quantize(model, calibration, advanced_parameters=advanced, **options)
    else:
        images = list(Images(job.open(), job.spec, _VALIDATION_BATCH, job.held_out))
        made = nncf.quantize_with_accuracy_control(
            model,
            calibration,
            nncf.Dataset(_with_classes(job.model, images), lambda pair: pair[0]),
            _agreement_onnx if as_onnx else _agreement_openvino,
            max_drop=max_drop,
            advanced_quantization_parameters=advanced,
            **options,
        )
    _save(made, path, as_onnx)


def _options(preset: str, correction: str, batches: int) -> dict[str, Any]:
    import nncf

    return {
        "preset": getattr(nncf.QuantizationPreset, preset.upper()),
        "subset_size": batches,
        "fast_bias_correction": correction != "accurate",
    }


def _advanced(correction: str, per_channel: bool) -> Any:
    import nncf
    from nncf.quantization.advanced_parameters import QuantizationParameters

    weights = None if per_channel else QuantizationParameters(per_channel=False)
    return nncf.AdvancedQuantizationParameters(
        disable_bias_correction=correction == "none",
        **({} if weights is None else {"weights_quantization_params": weights}),
    )


def _read(model: Path, as_onnx: bool) -> Any:
    if as_onnx:
        import onnx

        return onnx.load(str(model))
    import openvino

    # Not Core.read_model: it leaves a Reshape at every bias, which NNCF then does not correct.
    return openvino.convert_model(str(model))


def _save(made: Any, path: Path, as_onnx: bool) -> None:
    if as_onnx:
        import onnx

        with atomic_path(path) as part:
            onnx.save(made, str(part))
        return
    import openvino

    # Two files, .xml and .bin, that refer to each other by name: nothing to rename.
    openvino.save_model(made, str(path), compress_to_fp16=False)


def _feed(job: Job, as_onnx: bool) -> Any:
    name = job.spec.input_name
    return (lambda inputs: {name: inputs}) if as_onnx else (lambda inputs: inputs)


_Pair = tuple[NDArray[np.float32], NDArray[np.int64]]


def _with_classes(model: Path, images: Iterable[NDArray[np.float32]]) -> list[_Pair]:
    """Batches with the class that FP32 names for every image."""
    from deploy_tools.runtimes import open_session

    session = open_session(model)
    try:
        return [(inputs, session.run(inputs)[0].argmax(axis=1)) for inputs in images]
    finally:
        session.close()


def _agreement_openvino(compiled: Any, pairs: Iterable[_Pair]) -> tuple[float, None]:
    return _agreement((compiled(inputs)[0], classes) for inputs, classes in pairs), None


def _agreement_onnx(model: Any, pairs: Iterable[_Pair]) -> tuple[float, None]:
    from deploy_tools.runtimes import open_session

    session = open_session(model.SerializeToString())
    try:
        return _agreement((session.run(inputs)[0], classes) for inputs, classes in pairs), None
    finally:
        session.close()


def _agreement(found: Iterable[tuple[NDArray[np.float32], NDArray[np.int64]]]) -> float:
    """The share of images whose highest logit is that of FP32."""
    same = [logits.argmax(axis=1) == classes for logits, classes in found]
    return float(np.concatenate(same).mean())
