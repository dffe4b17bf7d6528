"""Folding and exporting as `benchmarks.peers.measure` runs a tool: in a process of its own."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.base import Job
from benchmarks.studies.growth_stages import import_exporter
from deploy_tools.errors import UserError
from deploy_tools.recipe import InputTable


def load() -> None:
    """Import what folding and exporting need, so that importing is not measured."""
    import deploy_tools.fuse
    import deploy_tools.pipeline.model  # noqa: F401

    import_exporter()


def quantize(job: Job, path: Path) -> None:
    """Write the FP32 file of the job's module; the name is the one that `measure` calls."""
    from deploy_tools.export import onnx_from_module
    from deploy_tools.pipeline.model import fold_model, load_model

    if job.origin is None:
        raise UserError("this job does not say where its module comes from.")
    spec = job.spec
    given = InputTable(spec.size, spec.mean, spec.std, spec.resize, spec.crop)
    loaded = load_model(job.origin, given)
    real = next(iter(job.images(4)))
    onnx_from_module(fold_model(loaded, real)[0], loaded.spec, path)
