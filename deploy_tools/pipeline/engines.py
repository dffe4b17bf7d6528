"""TensorRT variants of a run: their ONNX in FP16, and their engine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deploy_tools.artifacts import Artifact
from deploy_tools.engine_files import sidecar_path
from deploy_tools.engines.build import BuildConfig, engine_from_onnx
from deploy_tools.errors import DeployToolsError, UserError
from deploy_tools.pipeline.stages import StageRunner
from deploy_tools.pipeline.variants import Variant
from deploy_tools.quantization.cast import fp16_from_onnx
from deploy_tools.recipe import BatchTable
from deploy_tools.runtimes.flavours import find_flavour
from deploy_tools.runtimes.gpu import find_gpu


def batch_of(variant: Variant) -> BatchTable:
    """Return the batch sizes of a variant's engine."""
    return (variant.table.batch if variant.table else None) or BatchTable()


def cast_variant(runner: StageRunner, variant: Variant, fp32: Artifact) -> Artifact:
    """Return the FP16 file of the exported model."""
    model = runner.directory.path(fp32.file)

    def make(path: Path) -> Mapping[str, Any]:
        report = fp16_from_onnx(model, path)
        return {"tensors": report.tensors, "lost": report.lost}

    return runner.run(
        "cast", variant.file, variant.file, {"to": "fp16"}, {"fp32.onnx": fp32.sha256}, make
    )


def in_fp16(write: Callable[[Path], Mapping[str, Any]], path: Path) -> Mapping[str, Any]:
    """Let `write` make a Q/DQ file and put it at `path` with everything else in FP16."""
    with tempfile.TemporaryDirectory() as folder:
        float_rest = Path(folder) / path.name
        notes = write(float_rest)
        try:
            fp16_from_onnx(float_rest, path)
        except UserError as error:
            message = error.message.replace(str(float_rest), path.name)
            raise UserError(message, 'Set rest = "fp32" for this variant.') from error
    return notes


def build_variant(runner: StageRunner, variant: Variant, model: Artifact) -> Artifact:
    """Return the engine; its sidecar is an artifact of its own.

    Raises MissingDependencyError where the flavour is not installed or needs a GPU to build.
    Where it fails, an engine of an earlier run is removed: it was built from another file.
    """
    try:
        return _built(runner, variant, model)
    except DeployToolsError:
        if not runner.dry:
            engine = runner.directory.path(variant.engine)
            for path in (engine, sidecar_path(engine)):
                path.unlink(missing_ok=True)
        raise


def _built(runner: StageRunner, variant: Variant, model: Artifact) -> Artifact:
    flavour, gpu = find_flavour(variant.runtime), find_gpu()
    config = BuildConfig(flavour=flavour.name, batch=str(batch_of(variant)))
    settings = {
        "flavour": flavour.name, "version": flavour.version, "batch": config.batch,
        "gpu": f"{gpu.name} {gpu.compute_capability}" if gpu else "",
    }  # fmt: skip
    path = runner.directory.path(variant.engine)
    sidecar_file = sidecar_path(Path(variant.engine)).as_posix()

    def make() -> Mapping[str, Mapping[str, Any]]:
        sidecar = engine_from_onnx(runner.directory.path(model.file), path, config, runner.progress)
        notes = {
            "precision": sidecar.precision,
            "gpu": sidecar.gpu,
            "build_seconds": round(sidecar.build_seconds, 2),
        }
        return {variant.engine: notes, sidecar_file: {}}

    files = {variant.engine: variant.engine, sidecar_file: sidecar_file}
    made = runner.run_together("build", files, settings, {"model": model.sha256}, make)
    return made[variant.engine]
