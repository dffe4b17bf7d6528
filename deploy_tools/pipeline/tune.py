"""Tune one ONNX file on this machine and write down what was found beside it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from benchmarks.energy import EnergyMeter
from benchmarks.server import Tools
from benchmarks.speed import wait_until_idle
from deploy_tools.artifacts import ArtifactDirectory, sha256_of_file
from deploy_tools.data.source import ImageSource, batches
from deploy_tools.data.spec import InputSpec
from deploy_tools.engine_files import require_writable
from deploy_tools.errors import UserError
from deploy_tools.onnx_files import every_node, input_spec_of, load_onnx, require_dynamic_batch
from deploy_tools.pipeline.tuned import machine_facts
from deploy_tools.pipeline.tuning import choose
from deploy_tools.pipeline.tuning_bench import Progress, TuningBench
from deploy_tools.pipeline.tuning_choice import Choice, TuneConfig
from deploy_tools.runtimes import open_session
from deploy_tools.tuning.candidates import (
    BATCHES,
    candidates_for,
    default_settings,
    most_copies,
)
from deploy_tools.tuning.files import Tuning, has_manifest, tuning_path, write_tuning
from deploy_tools.tuning.settings import TUNABLE


def tune_onnx(
    model: Path,
    source: ImageSource,
    config: TuneConfig,
    runtimes: Sequence[str] = TUNABLE,
    precision: str = "fp32",
    progress: Progress | None = None,
) -> tuple[Path, Tuning, Choice]:
    """Find how a file runs fastest here; returns the file that says so, what is in it, and all
    that was tried.

    source: real images of any split; their content is only passed through the model. runtimes:
    those to try. precision: of what is not quantized, for all candidates. They are compared with
    what commands do without a tuning, whatever is tried; where that cannot be done in `precision`,
    with the first runtime as it is without one.
    Raises what `choose`, `load_onnx` and `open_session` raise, before anything is timed where that
    is known then, and OutputError where the result cannot be written.
    """
    proto = load_onnx(model)
    require_dynamic_batch(proto, model)
    spec = input_spec_of(proto, model)
    require_writable(tuning_path(model))
    facts, machine = machine_facts()
    can_split = not scales_calls(proto)
    del proto
    size = model.stat().st_size
    candidates, skipped = candidates_for(runtimes, precision, machine, size, can_split)
    fp32 = precision == "fp32"
    default = default_settings("onnxruntime" if fp32 else runtimes[0], precision)
    images = _images(source, spec, max(*BATCHES, *(settings.streams for settings in candidates)))
    sha256 = sha256_of_file(model)
    with (
        _folder(model) as directory,
        TuningBench(
            partial(open_session, model), images, _tools(), config.seed, progress,
            most_copies(machine, size),
        ) as bench,
    ):  # fmt: skip
        choice = choose(bench, default, candidates, config, can_split)
        tuning = Tuning(
            sha256, facts, config.latency_limit_ms, choice.settings,
            fp32 and choice.is_default, choice.default, choice.measured(),
        )  # fmt: skip
        path = write_tuning(model, tuning, directory)
    return path, tuning, replace(choice, skipped=(*skipped, *choice.skipped))


def _images(source: ImageSource, spec: InputSpec, count: int) -> NDArray[Any]:
    """Return so many inputs, from the source's start again where it has fewer images."""
    if not len(source):
        raise UserError(f"{source.name} {source.split} has no images.")
    indices = [i % len(source) for i in range(count)]
    return next(batches(source, spec, count, indices))[0]


def _tools() -> Tools:
    """Return the clock and what goes with it; energy is not asked for."""
    meter = EnergyMeter(reason="not asked for")
    return Tools(time.perf_counter_ns, time.sleep, wait_until_idle, meter)


def scales_calls(proto: onnx.ModelProto) -> bool:
    """Whether a file takes the scale of a tensor from all images of a call together.

    So do DynamicQuantizeLinear, and DynamicQuantizeMatMul and DynamicQuantizeLSTM of onnxruntime.
    """
    return any(node.op_type.startswith("DynamicQuantize") for node in every_node(proto))


@contextlib.contextmanager
def _folder(model: Path) -> Iterator[ArtifactDirectory | None]:
    """Hold the file's folder where it is an artifact directory, from before the measurement on."""
    if not has_manifest(model):
        yield None
        return
    with ArtifactDirectory(model.parent) as directory:
        yield directory
