"""QAT variants: fine-tuned under the very Q/DQ plan that the writer will write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from calibration.table import RangeTable
from deploy_tools.artifacts import Artifact
from deploy_tools.data.source import source_hash
from deploy_tools.data.splits import stratified_choice
from deploy_tools.errors import UserError, require
from deploy_tools.pipeline.images import CalibrationImages
from deploy_tools.pipeline.int8_settings import Int8Settings
from deploy_tools.pipeline.stages import StageRunner
from deploy_tools.pipeline.variants import Variant
from deploy_tools.quantization.static import Ranges
from deploy_tools.recipe import QatTable


def fine_tuned(
    runner: StageRunner,
    name: str,
    table: QatTable,
    fp32: Artifact,
    model: Artifact,
    ranges: Artifact,
    images: CalibrationImages,
    settings: Int8Settings,
) -> tuple[Artifact, Artifact, Ranges | None]:
    """Return the fine-tuned float file, its learnt ranges as an artifact and as a value.

    name: names the files. fp32: the teacher. model, ranges: where the training starts. The value is None in a dry run.
    """
    require("torch", "torch", "Quantization-aware training")
    from deploy_tools.training.qat import qat_from_onnx
    from deploy_tools.training.qat_result import LearntRanges

    directory = runner.directory
    files = {f"{name}-qat": f"qat/{name}.onnx", f"{name}-qat-ranges":
             f"qat/{name}-ranges.json"}  # fmt: skip
    weights, learnt = files

    def make() -> Mapping[str, Mapping[str, Any] | None]:
        result = qat_from_onnx(
            directory.path(model.file), RangeTable.load(directory.path(ranges.file)),
            images.source, training_images(table, images), images.spec, settings.static, table,
            directory.path(files[weights]), runner.progress, directory.path(fp32.file),
        )  # fmt: skip
        result.ranges.save(directory.path(files[learnt]))
        return {weights: result.to_dict(), learnt: None}

    plain = asdict(settings.static)
    wanted = asdict(table) | {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}
    parents = {
        "model": model.sha256, "ranges": ranges.sha256, "fp32.onnx": fp32.sha256,
        "images": source_hash(images.source, training_images(table, images)),
    }  # fmt: skip
    made = runner.run_together("qat", files, wanted, parents, make)
    path: Path = directory.path(files[learnt])
    return made[weights], made[learnt], None if runner.dry else LearntRanges.load(path)


def training_images(table: QatTable, images: CalibrationImages) -> list[int]:
    """Return positions in the calibration split: the calibration images, or as many as asked.

    Raises UserError where the split has fewer.
    """
    if not table.images:
        return list(images.selection.indices)
    source = images.source
    if table.images > len(source):
        raise UserError(
            f"fine-tuning asks for {table.images} images and {source.name} {source.split} has "
            f"{len(source)}.",
            "Ask for fewer; 0 takes the calibration images.",
        )
    found: list[int] = stratified_choice(
        source.labels, table.images, images.selection.seed
    ).tolist()
    return found


def qat_table(variant: Variant) -> QatTable:
    """Return a QAT variant's settings."""
    return (variant.table.qat if variant.table else None) or QatTable()
