"""One stage of the pipeline in a process of its own: its time and its peak memory.

    python -m benchmarks.studies.growth_stages TASK.json ANSWER.json CORES

The model is a CIFAR ResNet with random weights (seed 0). What a stage reads is there already, in
the task's folder; loading it and importing are not timed. The process keeps to CORES cores where
the system can do that, so libraries that start threads by the number of cores start no more; there
OMP_NUM_THREADS is all. The peak is that of the stage: what the
process had held before, the interpreter and its libraries, is in it, what it had given back is not.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import benchmarks
from benchmarks.memory_worker import peak_rss
from deploy_tools.data import open_source
from deploy_tools.data.source import ImageSource, batches
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import DeployToolsError, UserError

SPEC = InputSpec((32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_NORMALIZED_BY = 16
_TIMEOUT_S = 4 * 3600.0

Stage = Callable[[], object]


@dataclass(frozen=True)
class Task:
    """What a process is asked to do.

    stage: a name in `STAGES`. folder: where the files of this model lie. depth: of the ResNet.
    data: the folder of CIFAR-10. calibration, evaluation: numbers of images.
    """

    stage: str
    folder: str
    depth: int
    data: str
    calibration: int
    evaluation: int

    def path(self, name: str) -> Path:
        """Return where a file of this model lies."""
        return Path(self.folder) / name

    def source(self, split: str) -> ImageSource:
        """Open the images of a split."""
        return open_source("cifar10", Path(self.data), split)


@dataclass(frozen=True)
class Cost:
    """What a stage took.

    cpu_seconds: of all its threads. start_rss_bytes: resident when it began.
    peak_rss_bytes: the most that was resident while it ran.
    """

    seconds: float
    cpu_seconds: float
    start_rss_bytes: int
    peak_rss_bytes: int


def cost_of(task: Task, cores: int = 1, timeout_s: float = _TIMEOUT_S) -> Cost:
    """Run a stage in a fresh process; UserError with the reason where it fails or takes too long."""
    program = [sys.executable, "-m", "benchmarks.studies.growth_stages"]
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder) / "task.json", Path(folder) / "answer.json"
        request.write_text(json.dumps(asdict(task)), "utf-8")
        try:
            done = subprocess.run(
                [*program, str(request), str(answer), str(cores)],
                env=_environment(cores), capture_output=True, text=True, timeout=timeout_s,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"{task.stage} of ResNet-{task.depth} took over {timeout_s:.0f} s and was stopped."
            ) from error
        if done.returncode or not answer.is_file():
            lines = done.stderr.strip().splitlines() or [f"code {done.returncode}"]
            raise UserError(f"{task.stage} of ResNet-{task.depth} failed: {lines[-1]}")
        return Cost(**json.loads(answer.read_text("utf-8")))


def _environment(threads: int) -> dict[str, str]:
    paths = [str(Path(benchmarks.__file__).resolve().parents[1])]
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads)}


def main() -> None:
    """Do the task of the command line and write what it took."""
    request, answer = (Path(name) for name in sys.argv[1:3])
    keep_to(int(sys.argv[3]))
    task = Task(**json.loads(request.read_text("utf-8")))
    try:
        cost = _measured(STAGES[task.stage](task))
    except DeployToolsError as error:
        raise SystemExit(str(error)) from error
    answer.write_text(json.dumps(asdict(cost)), "utf-8")


def keep_to(cores: int) -> None:
    """Keep this process and what it starts to so many of its cores, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])


def _measured(stage: Stage) -> Cost:
    gc.collect()
    _forget_peak()
    start = _status("VmRSS")
    began, worked = time.perf_counter(), _cpu_seconds()
    stage()
    return Cost(time.perf_counter() - began, _cpu_seconds() - worked, start, peak_rss())


def _forget_peak() -> None:
    """Let the peak count from here on (Linux, proc(5): clear_refs)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        raise UserError("the peak memory of a stage cannot be measured here.") from error


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _cpu_seconds() -> float:
    return sum(os.times()[:4])


def network(task: Task) -> Any:
    """Return the ResNet in eval mode, its BatchNorms with the statistics of a few images.

    Without them nothing would be normalized: the values would grow with each block, past the
    largest float in a network of 1,202 layers.
    """
    import torch
    from torch import nn

    from deploy_tools.models.cifar import CifarResNet

    torch.manual_seed(0)
    module = CifarResNet(task.depth)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None  # the mean of all that it sees
    with torch.no_grad():
        module.train()(torch.from_numpy(_some_images(task)))
    return module.eval()


def _some_images(task: Task) -> Any:
    return next(batches(task.source("train"), SPEC, _NORMALIZED_BY))[0]


def _fold(task: Task) -> Stage:
    import torch

    from deploy_tools.fuse import FuseConfig, fold_batchnorm

    module, images = network(task), torch.from_numpy(_some_images(task)[:4])
    return lambda: fold_batchnorm(module, FuseConfig(), images[:2], [images])


def _export(task: Task) -> Stage:
    import torch

    from deploy_tools.export import onnx_from_module
    from deploy_tools.fuse import FuseConfig, fold_batchnorm

    folded, _ = fold_batchnorm(network(task), FuseConfig(), torch.zeros(SPEC.shape(2)))
    import_exporter()
    return lambda: onnx_from_module(folded, SPEC, task.path("fp32.onnx"))


def import_exporter() -> None:
    """Export a model of one layer: torch's exporter imports half of torch at its first call."""
    import torch

    from deploy_tools.export import onnx_from_module

    small = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    with tempfile.TemporaryDirectory() as folder:
        onnx_from_module(small.eval(), SPEC, Path(folder) / "small.onnx")


def _calibration(task: Task) -> Any:
    from calibration.select import SelectConfig, select_images
    from deploy_tools.pipeline.images import CalibrationImages

    source = task.source("train")
    selection = select_images(source, SelectConfig(task.calibration, "stratified", 0))
    return CalibrationImages(source, selection, lambda: SPEC)


def _calibrate(task: Task) -> Stage:
    from calibration.collect import CalibrateConfig, ranges_from_images
    from deploy_tools.onnx_files import load_onnx
    from deploy_tools.quantization.static import activation_tensors

    images, model = _calibration(task), task.path("fp32.onnx")
    config = CalibrateConfig("mse", threads=1)

    def run() -> None:
        tensors = activation_tensors(load_onnx(model))
        table = ranges_from_images(model, tensors, images.source, images.selection, SPEC, config)
        table.save(task.path("ranges.json"))

    return run


def _quantize(task: Task) -> Stage:
    import onnxruntime.quantization  # noqa: F401

    from calibration.table import RangeTable
    from deploy_tools.quantization.static import StaticConfig, qdq_from_onnx

    model, table = task.path("fp32.onnx"), RangeTable.load(task.path("ranges.json"))
    return lambda: qdq_from_onnx(model, table, task.path("int8.onnx"), StaticConfig())


def _made(task: Task, ranges: str) -> Stage:
    """The file with the default corrections, in a new folder: nothing is kept from before."""
    import onnxruntime.quantization  # noqa: F401

    import deploy_tools.training.onnx_module  # noqa: F401
    from deploy_tools.pipeline.int8_settings import Int8Settings
    from deploy_tools.pipeline.workshop import open_workshop
    from deploy_tools.quantization.static import StaticConfig

    images = _calibration(task)

    def run() -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            open_workshop(Path(folder), task.path("fp32.onnx"), images) as workshop,
        ):
            settings = Int8Settings(StaticConfig(), ranges=ranges)
            workshop.make(settings, task.path(f"corrected-{ranges}.onnx"))

    return run


def _predict(task: Task) -> Stage:
    source = task.source("test")
    return lambda: _predictions(task, source, "int8.onnx").save(task.path(_PREDICTIONS))


def _predictions(task: Task, source: ImageSource, file: str) -> Any:
    from benchmarks.predictions import predictions_from_images
    from deploy_tools.runtimes import RuntimeConfig, open_session

    session = open_session(task.path(file), RuntimeConfig(threads=1))
    try:
        return predictions_from_images(session, source, SPEC, indices=range(task.evaluation))
    finally:
        session.close()


_PREDICTIONS = "predictions/int8-static-ort.npz"


def _report(task: Task) -> Stage:
    """Accuracy of two files with its statistics, and the three reports; predictions are there."""
    from benchmarks.report import write_report

    source = task.source("test")
    base = _predictions(task, source, "fp32.onnx")
    base.save(task.path("predictions/fp32-ort.npz"))
    arch = f"resnet{task.depth}-cifar"
    return lambda: write_report(
        two_file_report(Path(task.folder), arch, source, task.evaluation), Path(task.folder)
    )


def two_file_report(folder: Path, arch: str, source: ImageSource, images: int) -> dict[str, Any]:
    """Return the report of fp32.onnx and int8.onnx, whose predictions lie in the folder."""
    from benchmarks.accuracy import accuracy_from_predictions
    from benchmarks.environment import describe_environment
    from benchmarks.predictions import Predictions
    from benchmarks.report import build_report, skipped, variant_entry
    from deploy_tools.version import __version__

    kinds = {"fp32-ort": ("fp32", None, None), "int8-static-ort": ("int8", "static", "ort-cpu")}
    found = {name: Predictions.load(folder / f"predictions/{name}.npz") for name in kinds}
    variants = [
        variant_entry(
            id=name, precision=precision, method=method, target=target, runtime="onnxruntime",
            provider="CPUExecutionProvider", file=f"{precision}.onnx",
            accuracy=accuracy_from_predictions(found[name], found["fp32-ort"]),
            speed=skipped("it is not what is measured here"),
            predictions=f"predictions/{name}.npz",
        )
        for name, (precision, method, target) in kinds.items()
    ]  # fmt: skip
    return build_report(
        tool={"name": "deploy-tools", "version": __version__},
        model={"arch": arch, "weights": "random"},
        data={
            "name": source.name, "split": source.split, "images": images,
            "sha256": found["fp32-ort"].data, "classes": list(source.classes),
        },
        calibration=None, environment=describe_environment(), baseline="fp32-ort",
        variants=variants, command="python -m benchmarks.studies.growth",
    )  # fmt: skip


STAGES: dict[str, Callable[[Task], Stage]] = {
    "fold": _fold,
    "export": _export,
    "calibrate": _calibrate,
    "quantize, plain": _quantize,
    "quantize, corrected, mse": lambda task: _made(task, "mse"),
    "quantize, default": lambda task: _made(task, "auto"),
    "predict": _predict,
    "report": _report,
}
"""By name, in the order in which one reads what another wrote; each returns what is measured."""


if __name__ == "__main__":
    main()
