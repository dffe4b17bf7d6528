"""Our static INT8 beside onnxruntime's own quantize_static, on the same images and seeds.

    python -m benchmarks.studies.peers_accuracy --data CIFAR10_FOLDER --checkpoint FILE.th

Each seed draws other calibration images; every file is judged on all test images by its
agreement with FP32 and its logit SQNR, which separate files that top-1 alone cannot.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.accuracy import Accuracy, accuracy_from_predictions
from benchmarks.peers import onnxruntime_static
from benchmarks.predictions import Predictions, predictions_from_images
from benchmarks.studies.base import Results, run_study
from calibration.collect import CalibrateConfig, ranges_from_statistics, statistics_from_images
from calibration.select import SelectConfig, Selection, select_images
from deploy_tools.data import open_source
from deploy_tools.data.source import ImageSource
from deploy_tools.data.spec import InputSpec
from deploy_tools.export import onnx_from_module
from deploy_tools.onnx_files import load_onnx
from deploy_tools.pipeline.model import fold_model, load_model
from deploy_tools.quantization.static import StaticConfig, activation_tensors, qdq_from_onnx
from deploy_tools.recipe import METHODS, InputTable, ModelTable
from deploy_tools.runtimes import RuntimeConfig, open_session

SEEDS = 5
IMAGES = 500
_INPUT = InputTable(size=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass(frozen=True)
class _Work:
    """What every tool gets: the FP32 file, the images, and a folder to write in."""

    model: Path
    spec: InputSpec
    train: ImageSource
    test: ImageSource
    baseline: Predictions
    folder: Path

    def judge(self, path: Path, runtime: str) -> Accuracy:
        session = open_session(path, RuntimeConfig(runtime))
        try:
            return accuracy_from_predictions(
                predictions_from_images(session, self.test, self.spec), self.baseline
            )
        finally:
            session.close()


def study(results: Results, data: Path, checkpoint: Path, arch: str) -> None:
    """Fill in one row a tool and method: mean and spread over the seeds."""
    with tempfile.TemporaryDirectory() as folder:
        work = _prepare(Path(folder), data, checkpoint, arch)
        top1 = work.baseline.correct
        results.row(tool="fp32", method="none", runtime="onnxruntime", correct=int(top1.sum()))
        found: dict[tuple[str, str, str], list[Accuracy]] = {}
        for seed in range(1 if results.quick else SEEDS):
            for key, accuracy in _one_seed(work, seed, results.quick):
                found.setdefault(key, []).append(accuracy)
        for (tool, method, runtime), accuracies in found.items():
            results.row(tool=tool, method=method, runtime=runtime, **_spread(accuracies))
    _claims(results, found)


def _prepare(folder: Path, data: Path, checkpoint: Path, arch: str) -> _Work:
    loaded = load_model(ModelTable(arch, str(checkpoint), num_classes=10), _INPUT)
    model = folder / "fp32.onnx"
    onnx_from_module(fold_model(loaded)[0], loaded.spec, model)
    test = open_source("cifar10", data, "test")
    session = open_session(model)
    baseline = predictions_from_images(session, test, loaded.spec)
    session.close()
    train = open_source("cifar10", data, "train")
    return _Work(model, loaded.spec, train, test, baseline, folder)


def _one_seed(
    work: _Work, seed: int, quick: bool
) -> Iterator[tuple[tuple[str, str, str], Accuracy]]:
    selection = select_images(work.train, SelectConfig(IMAGES, "stratified", seed))
    yield from _ours(work, selection)
    path = work.folder / "peer.onnx"
    for method in onnxruntime_static.METHODS[: 2 if quick else 3]:
        onnxruntime_static.quantize(
            work.model, work.train, list(selection.indices), work.spec, method, path
        )
        yield ("onnxruntime", method, "onnxruntime"), work.judge(path, "onnxruntime")


def _ours(work: _Work, selection: Selection) -> Iterator[tuple[tuple[str, str, str], Accuracy]]:
    tensors = activation_tensors(load_onnx(work.model))
    seen = statistics_from_images(
        work.model, tensors, work.train, selection, work.spec, CalibrateConfig()
    )
    path = work.folder / "ours.onnx"
    for method in METHODS:
        table = ranges_from_statistics(seen, CalibrateConfig(method=method))
        for target, runtime in (("ort-cpu", "onnxruntime"), ("openvino", "openvino")):
            qdq_from_onnx(work.model, table, path, StaticConfig(target))
            yield ("deploy-tools", method, runtime), work.judge(path, runtime)


def _spread(accuracies: list[Accuracy]) -> dict[str, float]:
    """Return mean and range over the seeds."""
    values = {
        "sqnr_db": [a.logit_sqnr_db for a in accuracies],
        "agreement": [a.agreement for a in accuracies],
        "drop_pp": [a.drop_pp for a in accuracies],
    }
    row: dict[str, float] = {"seeds": len(accuracies)}
    for name, each in values.items():
        row |= {name: statistics.mean(each), f"{name}_min": min(each), f"{name}_max": max(each)}
    row["worst_p"] = min(a.mcnemar_p for a in accuracies)
    return row


def _claims(results: Results, found: dict[tuple[str, str, str], list[Accuracy]]) -> None:
    def best(tool: str, runtime: str) -> float:
        return max(
            statistics.mean([a.logit_sqnr_db for a in accuracies])
            for key, accuracies in found.items()
            if (key[0], key[2]) == (tool, runtime)
        )

    peer = best("onnxruntime", "onnxruntime")
    for runtime in ("onnxruntime", "openvino"):
        ours = best("deploy-tools", runtime)
        results.claim(f"best mean SQNR of ours on {runtime}, dB", ours, ">=", round(peer, 2))
    mse = found[("deploy-tools", "mse", "onnxruntime")]
    results.claim("mean SQNR of the default ranges (mse), dB", _mean(mse), ">=", round(peer, 2))
    drop = max(
        abs(statistics.mean([a.drop_pp for a in accuracies])) for accuracies in found.values()
    )
    results.claim("largest mean drop of any file, points", drop, "<=", 0.2)


def _mean(accuracies: list[Accuracy]) -> float:
    return statistics.mean([a.logit_sqnr_db for a in accuracies])


_OPTIONS = [
    click.Option(["--data"], type=click.Path(path_type=Path), required=True, help="CIFAR-10."),
    click.Option(["--checkpoint"], type=click.Path(path_type=Path), required=True),
    click.Option(["--arch"], default="resnet20-cifar-a", show_default=True),
]
command = run_study("peers_accuracy", study, _OPTIONS)

if __name__ == "__main__":
    command()
