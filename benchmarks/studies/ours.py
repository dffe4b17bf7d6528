"""Our own rows beside the other tools', made from the same jobs.

One function a row: from a job to the INT8 file for a target. `benchmarks.peers.measure` runs
them as it runs the other tools, each in a process of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.peers.base import Job
from calibration.select import SelectConfig, select_images
from deploy_tools.errors import UserError, nearest
from deploy_tools.onnx_files import load_onnx
from deploy_tools.pipeline.images import CalibrationImages
from deploy_tools.pipeline.int8_settings import Int8Settings
from deploy_tools.pipeline.workshop import open_workshop
from deploy_tools.quantization.prepare import prepared
from deploy_tools.quantization.residual import main_branches
from deploy_tools.quantization.static import StaticConfig


def corrected(job: Job, path: Path, config: StaticConfig, branches: bool = True) -> None:
    """Static INT8 as the commands make it without any option.

    branches: False leaves the main branch of every residual Add unquantized.
    """
    if not branches:
        adds = tuple(main_branches(prepared(load_onnx(job.model))))
        config = StaticConfig(config.target, config.per_channel, float_branches=adds)
    _make(job, path, Int8Settings(config))


def plain(job: Job, path: Path, config: StaticConfig, ranges: str) -> None:
    """Plain static INT8: ranges of one method from the calibration images, nothing else."""
    _make(job, path, plain_settings(config, ranges))


def plain_settings(config: StaticConfig, ranges: str) -> Int8Settings:
    """Return settings without any correction."""
    return Int8Settings(
        config, ranges=ranges, equalize=False, rounding="nearest", bias_correction=False
    )


def _make(job: Job, path: Path, settings: Int8Settings) -> None:
    source = job.open()
    ids = tuple(source.image_id(index) for index in job.indices)
    selection = select_images(source, SelectConfig(choose="list", list=ids))
    images = CalibrationImages(source, selection, lambda: job.spec)
    with (
        tempfile.TemporaryDirectory() as folder,
        open_workshop(Path(folder), job.model, images) as workshop,
    ):
        workshop.make(settings, path)


FREE = "branches in float"
OURS: dict[str, Callable[[Job, Path, StaticConfig], None]] = {
    "default": corrected,
    FREE: partial(corrected, branches=False),
    "plain mse": partial(plain, ranges="mse"),
    "plain percentile": partial(plain, ranges="percentile"),
    "plain minmax": partial(plain, ranges="minmax"),
}
"""By row name; the first is the default of the commands, which the claims are about."""

DEFAULT = next(iter(OURS))


def load() -> None:
    """Import what the rows need, so that importing is not measured."""
    import onnxruntime.quantization  # noqa: F401

    import deploy_tools.training.onnx_module  # noqa: F401


def quantize(
    job: Job, path: Path, row: str, target: str = "ort-cpu", per_channel: bool = True
) -> None:
    """Write our INT8 file of `job.model` for a target to `path`. row: a name in OURS."""
    if row not in OURS:
        raise UserError(f'there is no row "{row}" of ours.', nearest(row, OURS))
    OURS[row](job, path, StaticConfig(target, per_channel=per_channel))
