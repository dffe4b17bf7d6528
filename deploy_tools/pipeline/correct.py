"""The float file that a variant is quantized from: equalized, and its weights rounded."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy_tools.artifacts import Artifact, atomic_path, sha256_of_value
from deploy_tools.errors import UnsupportedGraphError, require
from deploy_tools.onnx_files import load_onnx
from deploy_tools.pipeline.images import CalibrationImages, logits_of
from deploy_tools.pipeline.int8_settings import Int8Settings
from deploy_tools.pipeline.stages import Notes, StageRunner
from deploy_tools.quantization.prepare import prepared
from deploy_tools.quantization.static import Ranges, qdq_from_onnx, quantized_tensors
from deploy_tools.quantization.targets import target_named
from deploy_tools.sensitivity.figures import clearly_more, logit_sqnr_db, noise_by_image

FOLDER = "corrections"
_MOST_DB = 200.0  # JSON has no infinity
_WAY_OUT = (
    "Or leave corrections out: --no-equalize --rounding nearest --no-bias-correction; in a recipe "
    'equalize = false, rounding = "nearest", bias_correction = false.'
)


def corrected_weights(
    runner: StageRunner, fp32: Artifact, settings: Int8Settings, images: CalibrationImages
) -> tuple[Artifact, Artifact]:
    """Return the float file after the corrections that need no ranges, and what it was before its
    weights were rounded; both are fp32 itself without corrections.
    """
    scaled = _equalized(runner, fp32, settings, images) if settings.equalize else fp32
    if settings.rounding == "gptq":
        return _rounded(runner, scaled, settings, images), scaled
    return scaled, scaled


def _equalized(
    runner: StageRunner, model: Artifact, settings: Int8Settings, images: CalibrationImages
) -> Artifact:
    require("torch", "torch", "Equalizing channels")
    from deploy_tools.corrections.equalize import EqualizeConfig, equalized_from_onnx

    path = runner.directory.path(model.file)
    proto = prepared(load_onnx(path)) if path.is_file() else None
    tensors = quantized_tensors(proto, settings.static) if proto else ()
    share = 0.25 if settings.rounding == "gptq" else 1.0
    exclude = settings.static.nodes_in_float(proto) if proto else ()
    config = EqualizeConfig(settings.static.per_channel, weight_share=share, exclude=exclude)

    def make(target: Path) -> Notes:
        return equalized_from_onnx(path, tensors, images, target, config, runner.progress).to_dict()

    return _stage(runner, "equalize", model, images, asdict(config) | {"tensors": tensors}, make)


def _rounded(
    runner: StageRunner, model: Artifact, settings: Int8Settings, images: CalibrationImages
) -> Artifact:
    require("torch", "torch", "Rounding weights by GPTQ")
    from deploy_tools.corrections.rounding import RoundConfig, rounded_from_onnx

    path = runner.directory.path(model.file)
    exclude = settings.static.nodes_in_float(prepared(load_onnx(path))) if path.is_file() else ()
    levels = 64 if target_named(settings.static.target).reduce_range else 127
    config = RoundConfig(levels, settings.static.per_channel, exclude=exclude)

    def make(target: Path) -> Notes:
        return rounded_from_onnx(path, images, target, config, runner.progress).to_dict()

    return _stage(runner, "round", model, images, asdict(config), make)


def corrected_bias(
    runner: StageRunner,
    model: Artifact,
    reference: Artifact,
    ranges: Artifact,
    table: Ranges | None,
    settings: Int8Settings,
    images: CalibrationImages,
) -> Artifact:
    """Return the float file with corrected biases; without a say of the user, only where held-out
    calibration images have clearly less error with them.

    reference: the float file before rounding. table: the ranges as a value, None in a dry run.
    """
    if settings.bias_correction is False:
        return model
    require("torch", "torch", "Correcting biases")
    from deploy_tools.corrections.bias import bias_corrected_from_onnx

    path, goal = (runner.directory.path(one.file) for one in (model, reference))
    exact = target_named(settings.static.target).layout == "tensorrt"

    def make(target: Path) -> Notes:
        if table is None:
            raise RuntimeError("a stage was made in a dry run")
        kept, held = (images, images) if settings.bias_correction else images.split()
        with tempfile.TemporaryDirectory() as folder:
            plain, tried = Path(folder) / "plain.onnx", Path(folder) / "tried.onnx"
            qdq_from_onnx(path, table, plain, settings.static)
            report = bias_corrected_from_onnx(
                path, plain, kept, target, progress=runner.progress, reference=goal
            )
            notes: dict[str, Any] = {"shift": {one.layer: one.shift for one in report.layers}}
            if settings.bias_correction:
                return notes
            qdq_from_onnx(target, table, tried, settings.static)
            wanted = logits_of(goal, held, exact)
            without, corrected = (logits_of(file, held, exact) for file in (plain, tried))
        helps = clearly_more(noise_by_image(wanted, without), noise_by_image(wanted, corrected))
        if not helps:
            with atomic_path(target) as part:
                shutil.copyfile(path, part)
        found = {
            "without": min(_MOST_DB, logit_sqnr_db(wanted, without)),
            "with": min(_MOST_DB, logit_sqnr_db(wanted, corrected)),
        }
        return notes | {"held_out_sqnr_db": found, "kept": helps}

    wanted = {"bias_correction": settings.bias_correction} | asdict(settings.static)
    return _stage(
        runner,
        "bias",
        model,
        images,
        wanted,
        make,
        {"ranges": ranges.sha256, "reference": reference.sha256},
    )


def _stage(
    runner: StageRunner,
    stage: str,
    model: Artifact,
    images: CalibrationImages,
    settings: Mapping[str, Any],
    make: Any,
    more: Mapping[str, str] | None = None,
) -> Artifact:
    """Run a correction; its file is named after all that it depends on, so variants share it."""
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    parents = {"model": model.sha256, "images": images.selection.content_hash, **(more or {})}
    key = sha256_of_value({"settings": plain, "parents": parents})[:8]

    def guarded(target: Path) -> Notes:
        try:
            notes: Notes = make(target)
        except UnsupportedGraphError as error:
            raise UnsupportedGraphError(
                error.message, " ".join(filter(None, (error.hint, _WAY_OUT)))
            ) from error
        return notes

    file = f"{FOLDER}/{stage}-{key}.onnx"
    return runner.run(stage, f"{stage}-{key}", file, plain, parents, guarded)
