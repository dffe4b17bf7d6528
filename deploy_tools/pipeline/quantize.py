"""Correct, calibrate, fine-tune where asked for, and write the INT8 file of one variant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from calibration.select import Selection
from calibration.table import RangeTable
from deploy_tools.artifacts import Artifact
from deploy_tools.data.source import ImageSource
from deploy_tools.data.spec import InputSpec
from deploy_tools.pipeline.correct import corrected_bias, corrected_weights
from deploy_tools.pipeline.engines import in_fp16
from deploy_tools.pipeline.images import CalibrationImages
from deploy_tools.pipeline.int8_settings import Int8Settings, settings_of
from deploy_tools.pipeline.qat import fine_tuned, qat_table
from deploy_tools.pipeline.ranges import calibrated_ranges
from deploy_tools.pipeline.stages import StageRunner
from deploy_tools.pipeline.variants import Variant
from deploy_tools.quantization.dynamic import DynamicConfig, dynamic_from_onnx
from deploy_tools.quantization.static import Ranges, qdq_from_onnx
from deploy_tools.quantization.summary import QuantizationSummary
from deploy_tools.quantization.targets import target_named


def quantize_variant(
    runner: StageRunner,
    variant: Variant,
    fp32: Artifact,
    selection: Selection | None,
    source: ImageSource,
    spec: Callable[[], InputSpec],
) -> Artifact:
    """Return the variant's ONNX artifact."""
    if variant.method == "dynamic" or selection is None or variant.table is None:
        return _dynamic(runner, variant, fp32)
    settings = settings_of(variant)
    images = CalibrationImages(source, selection, spec)
    model, ranges = static_parts(runner, fp32, settings, images)
    table = None if runner.dry else RangeTable.load(runner.directory.path(ranges.file))
    learnt: Ranges | None = table
    if variant.method == "qat":
        model, ranges, learnt = fine_tuned(
            runner, variant.id, qat_table(variant), fp32, model, ranges, images, settings
        )
    path = runner.directory.path(model.file)

    def write(target: Path) -> Mapping[str, Any]:
        if learnt is None:
            raise RuntimeError("a stage was made in a dry run")
        return _notes(qdq_from_onnx(path, learnt, target, settings.static))

    def make(target: Path) -> Mapping[str, Any]:
        return in_fp16(write, target) if settings.rest == "fp16" else write(target)

    return runner.run(
        "quantize", f"{variant.id}.onnx", variant.file,
        _plain(asdict(settings.static)) | {"rest": settings.rest},
        {"model": model.sha256, "ranges": ranges.sha256}, make,
    )  # fmt: skip


def static_parts(
    runner: StageRunner, fp32: Artifact, settings: Int8Settings, images: CalibrationImages
) -> tuple[Artifact, Artifact]:
    """Return the corrected float file and its range table: what the Q/DQ file is written from."""
    model, reference = corrected_weights(runner, fp32, settings, images)
    grid = target_named(settings.static.target).grid
    ranges = calibrated_ranges(runner, model, images, settings.ranges, settings.calibrate, grid)
    table = None if runner.dry else RangeTable.load(runner.directory.path(ranges.file))
    return corrected_bias(runner, model, reference, ranges, table, settings, images), ranges


def _dynamic(runner: StageRunner, variant: Variant, fp32: Artifact) -> Artifact:
    table = variant.table
    model = runner.directory.path(fp32.file)
    config = DynamicConfig(bool(table.include_conv), table.exclude) if table else DynamicConfig()
    return runner.run(
        "quantize", f"{variant.id}.onnx", variant.file, _plain(asdict(config)),
        {"fp32.onnx": fp32.sha256}, lambda path: _notes(dynamic_from_onnx(model, path, config)),
    )  # fmt: skip


def _notes(summary: QuantizationSummary) -> dict[str, Any]:
    return {"quantization": summary.to_dict()}


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
