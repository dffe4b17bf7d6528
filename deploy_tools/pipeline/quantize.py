"""Calibrate (once a method) and write the INT8 file of one variant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from calibration.collect import CalibrateConfig, ranges_from_statistics, statistics_from_images
from calibration.select import Selection
from calibration.statistics import Statistics
from calibration.table import RangeTable
from deploy_tools.artifacts import Artifact
from deploy_tools.data.source import ImageSource
from deploy_tools.data.spec import InputSpec
from deploy_tools.onnx_files import load_onnx
from deploy_tools.pipeline.engines import in_fp16
from deploy_tools.pipeline.stages import StageRunner
from deploy_tools.pipeline.variants import Variant
from deploy_tools.quantization.dynamic import DynamicConfig, dynamic_from_onnx
from deploy_tools.quantization.static import StaticConfig, activation_tensors, qdq_from_onnx
from deploy_tools.quantization.summary import QuantizationSummary

STATISTICS_FILE = "calibration/statistics.npz"


def quantize_variant(
    runner: StageRunner,
    variant: Variant,
    fp32: Artifact,
    selection: Selection | None,
    source: ImageSource,
    spec: Callable[[], InputSpec],
) -> Artifact:
    """Return the variant's ONNX artifact."""
    model = runner.directory.path(fp32.file)
    if variant.method == "dynamic" or selection is None or variant.table is None:
        return _dynamic(runner, variant, fp32, model)
    table = variant.table
    config = CalibrateConfig(method=table.ranges or "mse", percentile=table.percentile or 99.999)
    ranges = calibrated_ranges(runner, fp32, selection, source, spec, config)
    static = StaticConfig(
        target="tensorrt" if variant.engine else variant.target,
        per_channel=table.per_channel is not False,
        exclude=table.exclude,
        first_conv=table.first_conv is not False,
        last_gemm=table.last_gemm is not False,
    )
    rest = (table.rest or "fp16") if variant.engine else "fp32"

    def write(path: Path) -> Mapping[str, Any]:
        ranges_table = RangeTable.load(runner.directory.path(ranges.file))
        return _notes(qdq_from_onnx(model, ranges_table, path, static))

    def make(path: Path) -> Mapping[str, Any]:
        return in_fp16(write, path) if rest == "fp16" else write(path)

    return runner.run(
        "quantize", f"{variant.id}.onnx", variant.file, _plain(asdict(static)) | {"rest": rest},
        {"fp32.onnx": fp32.sha256, "ranges": ranges.sha256}, make,
    )  # fmt: skip


def calibrated_ranges(
    runner: StageRunner,
    fp32: Artifact,
    selection: Selection,
    source: ImageSource,
    spec: Callable[[], InputSpec],
    config: CalibrateConfig,
) -> Artifact:
    """Return the range table's artifact; the pass over the images is shared by all methods."""
    model = runner.directory.path(fp32.file)
    images = {"fp32.onnx": fp32.sha256, "images": selection.content_hash}

    def collect(path: Path) -> Mapping[str, Any]:
        tensors = activation_tensors(load_onnx(model))
        statistics = statistics_from_images(
            model, tensors, source, selection, spec(), config, runner.progress
        )
        statistics.save(path)
        return {"images": statistics.images, "tensors": len(tensors)}

    statistics = runner.run("calibrate", "statistics", STATISTICS_FILE, {}, images, collect)
    name = _table_name(config)

    def choose(path: Path) -> Mapping[str, Any]:
        found = Statistics.load(runner.directory.path(STATISTICS_FILE))
        table = ranges_from_statistics(found, config)
        table.save(path)
        return {"method": table.method}

    return runner.run(
        "calibrate", name, f"calibration/{name}.json",
        {"method": config.method, "percentile": config.percentile},
        {"statistics": statistics.sha256}, choose,
    )  # fmt: skip


def _dynamic(runner: StageRunner, variant: Variant, fp32: Artifact, model: Path) -> Artifact:
    table = variant.table
    config = DynamicConfig(bool(table.include_conv), table.exclude) if table else DynamicConfig()
    return runner.run(
        "quantize", f"{variant.id}.onnx", variant.file, _plain(asdict(config)),
        {"fp32.onnx": fp32.sha256}, lambda path: _notes(dynamic_from_onnx(model, path, config)),
    )  # fmt: skip


def _table_name(config: CalibrateConfig) -> str:
    suffix = f"-{config.percentile:g}" if config.method == "percentile" else ""
    return f"ranges-{config.method}{suffix}"


def _notes(summary: QuantizationSummary) -> dict[str, Any]:
    return {"quantization": summary.to_dict()}


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
