"""Does calibration stream? Peak memory and time against the number of images, ours and onnxruntime's.

    python -m benchmarks.studies.calibration_memory [--quick] [--json] [-o FILE]

A ResNet-50 (ResNet-18 with --quick) with random weights sees photos at 224x224. Every
measurement is a fresh process, whose peak is its VmHWM. The photos are an image folder with a
train split: --data, $DEPLOY_TOOLS_PHOTOS, or flowers/ in $DEPLOY_TOOLS_TEST_DATA.
"""

from __future__ import annotations

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

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.studies.base import Results, run_study
from deploy_tools.data.source import ImageSource, batches
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SPEC = InputSpec(
    size=(224, 224),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    resize=232,
    crop="center",
)
METHODS = ("percentile", "entropy")
THREADS = 2
INFERENCE_BATCH = 8
GIB = 1 << 30


@dataclass(frozen=True)
class Plan:
    """What one run of the study measures.

    depth: of the ResNet. images: in the timed passes. growth: numbers of images for the peak of
    memory alone. theirs: numbers of images for onnxruntime's calibrators, until one takes more
    than limit_bytes and is ended.
    """

    depth: int
    images: int
    growth: tuple[int, ...]
    theirs: tuple[int, ...]
    limit_bytes: int


FULL = Plan(50, 512, (16, 64, 128), (16, 32, 64, 128), 8 * GIB)
QUICK = Plan(18, 64, (16,), (16, 32, 64), 4 * GIB)


@dataclass(frozen=True)
class Task:
    """What a fresh process is asked to do; `kind` names the function of `WORK` that does it."""

    kind: str
    method: str
    images: int
    model: str
    photos: str
    timed: bool = False


def main(results: Results, data: Path | None = None) -> None:
    """Peak memory and time of calibrating a ResNet on photos, beside onnxruntime's calibrators."""
    plan = QUICK if results.quick else FULL
    photos = photo_folder(data)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "fp32.onnx"
        _write_model(plan.depth, model)
        _measure_ours(results, plan, model, photos)
        _measure_theirs(results, plan, model, photos)


def photo_folder(chosen: Path | None = None) -> Path:
    """Return the image folder to use; UserError where there is none."""
    named = chosen or os.environ.get("DEPLOY_TOOLS_PHOTOS")
    data = Path(os.environ.get("DEPLOY_TOOLS_TEST_DATA", ROOT.parent / "shared" / "data"))
    folder = Path(named) if named else data / "flowers"
    if not (folder / "train").is_dir():
        raise UserError(
            f"no photos in {folder.name}/train.",
            "Name an image folder with a train split with --data or in $DEPLOY_TOOLS_PHOTOS.",
        )
    return folder


def _measure_ours(results: Results, plan: Plan, model: Path, photos: Path) -> None:
    for method in METHODS:
        for images in plan.growth:
            task = Task("ours", method, images, str(model), str(photos))
            results.row(**_row(task, plan, _run(task, plan.limit_bytes)))
        task = Task("ours", method, plan.images, str(model), str(photos), timed=True)
        found = _run(task, plan.limit_bytes)
        results.row(**_row(task, plan, found))
        name = f"ResNet-{plan.depth}, {plan.images} images, {method}"
        results.claim(f"{name}: times each image is read", found.get("reads_per_image"), "==", 1)
        results.claim(f"{name}: peak memory, GiB", _gib(found.get("peak_rss_bytes")), "<", 2)
        results.claim(f"{name}: time over FP32 inference", found.get("ratio"), "<", 3)


def _measure_theirs(results: Results, plan: Plan, model: Path, photos: Path) -> None:
    for method in METHODS:
        for images in plan.theirs:
            task = Task("onnxruntime", method, images, str(model), str(photos))
            found = _run(task, plan.limit_bytes)
            results.row(**_row(task, plan, found))
            if "stopped" in found:
                break


def _row(task: Task, plan: Plan, found: dict[str, Any]) -> dict[str, Any]:
    row = {
        "calibrator": "onnxruntime" if task.kind == "onnxruntime" else "deploy-tools",
        "model": f"resnet{plan.depth}",
        "method": task.method,
        "images": task.images,
        **found,
    }
    peak = _gib(found.get("peak_rss_bytes"))
    return {**row, "peak_gib": peak} if peak is not None else row


def _gib(size: int | None) -> float | None:
    return None if size is None else round(size / GIB, 3)


def _write_model(depth: int, path: Path) -> None:
    """Export a ResNet with random weights (seed 0), in its own process: torch leaves no trace."""
    program = (
        "import sys, torch; from pathlib import Path\n"
        "from deploy_tools.export import onnx_from_module\n"
        "from deploy_tools.models.resnet import ResNet\n"
        "from benchmarks.studies.calibration_memory import SPEC\n"
        "torch.manual_seed(0)\n"
        "onnx_from_module(ResNet(int(sys.argv[1])).eval(), SPEC, Path(sys.argv[2]))\n"
    )
    _check(subprocess.run(
        [sys.executable, "-c", program, str(depth), str(path)],
        env=_environment(), capture_output=True, text=True, check=False,
    ))  # fmt: skip


def _check(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"code {done.returncode}"]
        raise UserError(f"a measurement's process failed: {lines[-1]}")


def _environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def _run(task: Task, limit_bytes: int) -> dict[str, Any]:
    """Do the task in a fresh process and return its answer; end it where memory passes the limit."""
    program = "from benchmarks.studies.calibration_memory import work; work()"
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as problems:
        child = subprocess.Popen(
            [sys.executable, "-c", program, json.dumps(asdict(task))],
            env=_environment(), stdout=out, stderr=problems, text=True,
        )  # fmt: skip
        try:
            while child.poll() is None:
                used = _status(child.pid, "VmRSS")
                if used > limit_bytes:
                    return {"stopped": f"over {_gib(limit_bytes):g} GiB", "peak_rss_bytes": used}
                time.sleep(0.05)
        finally:
            child.kill()
            child.wait()
        out.seek(0)
        problems.seek(0)
        done = subprocess.CompletedProcess([], child.returncode, out.read(), problems.read())
    _check(done)
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return dict(answer)


def work() -> None:
    """Do the task on the command line and print the answer as one line of JSON."""
    task = Task(**json.loads(sys.argv[1]))
    print(json.dumps(WORK[task.kind](task)))


class _CountedReads:
    """An image source that counts how often an image is decoded."""

    def __init__(self, base: ImageSource) -> None:
        self.base = base
        self.reads = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    def __len__(self) -> int:
        return len(self.base)

    def load(self, index: int) -> NDArray[np.uint8]:
        self.reads += 1
        return self.base.load(index)


def _ours(task: Task) -> dict[str, Any]:
    """Calibrate, then infer: the peak is read in between."""
    from calibration.collect import CalibrateConfig, ranges_from_images
    from calibration.select import SelectConfig, select_images
    from deploy_tools.data.folder import open_folder
    from deploy_tools.onnx_files import load_onnx
    from deploy_tools.quantization.static import activation_tensors

    source: Any = _CountedReads(open_folder(Path(task.photos), "train"))
    model = Path(task.model)
    selection = select_images(source, SelectConfig(images=task.images))
    tensors = activation_tensors(load_onnx(model))
    config = CalibrateConfig(task.method, threads=THREADS)
    with _OtherLoad() as other:
        started = time.perf_counter()
        ranges_from_images(model, tensors, source, selection, SPEC, config)
        seconds = time.perf_counter() - started
    found: dict[str, Any] = {
        "peak_rss_bytes": _status(os.getpid(), "VmHWM"),
        "reads_per_image": source.reads / len(selection),
        "tensors": len(tensors),
        "calibration_s": seconds,
        "other_load": other.share,
    }
    if task.timed:
        with _OtherLoad() as other:
            inference = _inference_seconds(model, source.base, selection.indices)
        found |= {"inference_s": inference, "inference_other_load": other.share}
        found["ratio"] = seconds / inference
    return found


def _inference_seconds(model: Path, source: ImageSource, indices: tuple[int, ...]) -> float:
    """Return the seconds that FP32 inference alone takes; reading the images is not timed."""
    from deploy_tools.runtimes import RuntimeConfig, open_session

    session = open_session(model, RuntimeConfig(threads=THREADS))
    session.run(np.zeros(SPEC.shape(INFERENCE_BATCH), np.float32))
    seconds = 0.0
    for inputs, _ in batches(source, SPEC, INFERENCE_BATCH, indices):
        started = time.perf_counter()
        session.run(inputs)
        seconds += time.perf_counter() - started
    session.close()
    return seconds


def _onnxruntime(task: Task) -> dict[str, Any]:
    """Run onnxruntime's own calibrator as its quantize_static does, one image at a time."""
    from onnxruntime.quantization import calibrate
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    from calibration.select import SelectConfig, select_images
    from deploy_tools.data.folder import open_folder

    source = open_folder(Path(task.photos), "train")
    selection = select_images(source, SelectConfig(images=task.images))
    method = getattr(calibrate.CalibrationMethod, task.method.capitalize())
    with tempfile.TemporaryDirectory() as folder, _OtherLoad() as other:
        started = time.perf_counter()
        calibrator = calibrate.create_calibrator(
            Path(task.model),
            sorted({*QDQRegistry, *QLinearOpsRegistry}),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=method,
        )

        class Reader(calibrate.CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self._batches = batches(source, SPEC, 1, selection.indices)

            def get_next(self) -> dict[str, Any] | None:
                found = next(self._batches, None)
                return None if found is None else {SPEC.input_name: found[0]}

        calibrator.collect_data(Reader())
        tensors = len(list(calibrator.compute_data().keys()))
        seconds = time.perf_counter() - started
    return {
        "peak_rss_bytes": _status(os.getpid(), "VmHWM"),
        "tensors": tensors,
        "calibration_s": seconds,
        "other_load": other.share,
    }


WORK: dict[str, Callable[[Task], dict[str, Any]]] = {"ours": _ours, "onnxruntime": _onnxruntime}


class _OtherLoad:
    """How much of the machine other processes took meanwhile: a share of all its cores."""

    share: float | None = None

    def __enter__(self) -> _OtherLoad:
        self._started = (_busy_seconds(), time.process_time(), time.perf_counter())
        return self

    def __exit__(self, *error: object) -> None:
        busy, own, wall = (
            now - then
            for now, then in zip(
                (_busy_seconds(), time.process_time(), time.perf_counter()),
                self._started,
                strict=True,
            )
        )
        self.share = round(max(busy - own, 0.0) / (wall * (os.cpu_count() or 1)), 3)


def _busy_seconds() -> float:
    """Return the seconds that all cores together have worked since the machine started."""
    fields = [int(value) for value in _first_line(Path("/proc/stat")).split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / os.sysconf("SC_CLK_TCK")


def _first_line(path: Path) -> str:
    with path.open() as file:
        return file.readline()


def _status(pid: int, key: str) -> int:
    """Return a size of a process in bytes, from Linux's /proc; 0 where it has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)


if __name__ == "__main__":
    data_option = click.Option(
        ["--data"], type=click.Path(path_type=Path), help="Image folder with a train split."
    )
    run_study("calibration_memory", main, [data_option])()
