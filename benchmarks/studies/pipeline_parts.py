"""Parts of our pipeline as `benchmarks.peers.measure` runs a tool: in a process of their own."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from benchmarks.peers.base import Job
from benchmarks.studies.growth_stages import two_file_report
from calibration.select import SelectConfig, select_images
from deploy_tools.artifacts import write_json
from deploy_tools.data import open_source
from deploy_tools.errors import UserError, nearest
from deploy_tools.pipeline.images import CalibrationImages
from deploy_tools.pipeline.int8_settings import Int8Settings
from deploy_tools.pipeline.workshop import open_workshop
from deploy_tools.quantization.static import StaticConfig

PARTS = ("quantize", "report")


def load() -> None:
    """Import what the parts need, so that importing is not measured."""
    import onnxruntime.quantization  # noqa: F401

    import deploy_tools.training.onnx_module  # noqa: F401


def quantize(job: Job, path: Path, part: str, split: str = "", images: int = 0) -> None:
    """Do a part and write its file to `path`.

    part: one of PARTS. "quantize" is the default of the commands for onnxruntime; beside its file
    it writes the CPU seconds of each step, as `path`.steps.json. split, images: of "report", which
    reads two predictions beside `path`.
    """
    if part == "quantize":
        _quantize(job, path)
    elif part == "report":
        _report(job, path, split, images)
    else:
        raise UserError(f'there is no part "{part}".', nearest(part, PARTS))


def _quantize(job: Job, path: Path) -> None:
    source = job.open()
    ids = tuple(source.image_id(index) for index in job.indices)
    selection = select_images(source, SelectConfig(choose="list", list=ids))
    images = CalibrationImages(source, selection, lambda: job.spec)
    clock = StepClock()
    with (
        tempfile.TemporaryDirectory() as folder,
        open_workshop(Path(folder), job.model, images, clock) as workshop,
    ):
        workshop.make(Int8Settings(StaticConfig()), path)
    write_json(steps_of(path), clock.seconds())


def steps_of(path: Path) -> Path:
    """Return where "quantize" writes what each step took."""
    return path.with_suffix(".steps.json")


def read_steps(path: Path) -> dict[str, float]:
    """Return the CPU seconds of each step of the file at `path`, most first."""
    found: dict[str, float] = json.loads(steps_of(path).read_text("utf-8"))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


class StepClock:
    """A progress callback that adds up the CPU seconds between its calls, by step.

    A stage announces itself with nothing done; what ends there belongs to the step before.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._step = "begin"
        self._since = _cpu_seconds()

    def __call__(self, what: str, done: int, total: int) -> None:
        self._add(self._step if done == 0 else what)
        self._step = what.split(" ")[0] if done == 0 else what

    def seconds(self) -> dict[str, float]:
        """Return the CPU seconds by step, the last one until now."""
        self._add(self._step)
        return {step: round(seconds, 3) for step, seconds in self._seconds.items()}

    def _add(self, step: str) -> None:
        now = _cpu_seconds()
        self._seconds[step] = self._seconds.get(step, 0.0) + now - self._since
        self._since = now


def _cpu_seconds() -> float:
    return sum(os.times()[:4])


def _report(job: Job, path: Path, split: str, images: int) -> None:
    from benchmarks.report import write_report

    source = open_source(job.source, job.root, split)
    arch = job.origin.arch if job.origin else "a model"
    write_report(two_file_report(path.parent, arch, source, images), path.parent)
