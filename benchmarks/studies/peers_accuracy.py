"""Our static INT8 beside onnxruntime's own quantize_static, on the same images and seeds.

    python -m benchmarks.studies.peers_accuracy --data CIFAR10_FOLDER --checkpoint FILE.th

Each seed draws other calibration images; every file is judged on all test images by its
agreement with FP32 and its logit SQNR, which separate files that top-1 alone cannot.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from benchmarks.accuracy import Accuracy
from benchmarks.peers import onnxruntime_static
from benchmarks.studies.base import Results, run_study
from benchmarks.studies.subject import (
    CIFAR_INPUT,
    Data,
    Subject,
    mean_sqnr,
    prepare_subject,
    spread,
)
from calibration.collect import CalibrateConfig, ranges_from_statistics
from calibration.select import Selection
from deploy_tools.quantization.static import StaticConfig, qdq_from_onnx
from deploy_tools.recipe import METHODS, ModelTable
from deploy_tools.runtimes import RuntimeConfig

SEEDS = 5
IMAGES = 500
_Key = tuple[str, str, str]  # tool, method, runtime


def study(results: Results, data: Path, checkpoint: Path, arch: str) -> None:
    """Fill in one row a tool and method: mean and spread over the seeds."""
    model = ModelTable(arch, str(checkpoint), num_classes=10)
    with tempfile.TemporaryDirectory() as folder:
        subject = prepare_subject(Path(folder), model, CIFAR_INPUT, Data("cifar10", data))
        top1 = subject.baseline.correct
        results.row(tool="fp32", method="none", runtime="onnxruntime", correct=int(top1.sum()))
        found: dict[_Key, list[Accuracy]] = {}
        for seed in range(1 if results.quick else SEEDS):
            for key, accuracy in _one_seed(subject, seed, results.quick):
                found.setdefault(key, []).append(accuracy)
        for (tool, method, runtime), accuracies in found.items():
            results.row(tool=tool, method=method, runtime=runtime, **spread(accuracies))
    _claims(results, found)


def _one_seed(subject: Subject, seed: int, quick: bool) -> Iterator[tuple[_Key, Accuracy]]:
    selection = subject.select(IMAGES, seed)
    yield from _ours(subject, selection)
    path = subject.folder / "peer.onnx"
    for method in onnxruntime_static.METHODS[: 2 if quick else 3]:
        onnxruntime_static.quantize(
            subject.model, subject.train, list(selection.indices), subject.spec, method, path
        )
        accuracy = subject.judge(path, RuntimeConfig("onnxruntime"))
        yield ("onnxruntime", method, "onnxruntime"), accuracy


def _ours(subject: Subject, selection: Selection) -> Iterator[tuple[_Key, Accuracy]]:
    seen = subject.statistics(selection)
    path = subject.folder / "ours.onnx"
    for method in METHODS:
        table = ranges_from_statistics(seen, CalibrateConfig(method=method))
        for target, runtime in (("ort-cpu", "onnxruntime"), ("openvino", "openvino")):
            qdq_from_onnx(subject.model, table, path, StaticConfig(target))
            accuracy = subject.judge(path, RuntimeConfig(runtime))
            yield ("deploy-tools", method, runtime), accuracy


def _claims(results: Results, found: dict[_Key, list[Accuracy]]) -> None:
    def best(tool: str, runtime: str) -> float:
        return max(
            mean_sqnr(accuracies)
            for key, accuracies in found.items()
            if (key[0], key[2]) == (tool, runtime)
        )

    peer = best("onnxruntime", "onnxruntime")
    for runtime in ("onnxruntime", "openvino"):
        ours = best("deploy-tools", runtime)
        results.claim(f"best mean SQNR of ours on {runtime}, dB", ours, ">=", round(peer, 2))
    mse = mean_sqnr(found[("deploy-tools", "mse", "onnxruntime")])
    results.claim("mean SQNR of the default ranges (mse), dB", mse, ">=", round(peer, 2))
    drop = max(
        abs(statistics.mean([a.drop_pp for a in accuracies])) for accuracies in found.values()
    )
    results.claim("largest mean drop of any file, points", drop, "<=", 0.2)


_OPTIONS = [
    click.Option(["--data"], type=click.Path(path_type=Path), required=True, help="CIFAR-10."),
    click.Option(["--checkpoint"], type=click.Path(path_type=Path), required=True),
    click.Option(["--arch"], default="resnet20-cifar-a", show_default=True),
]
command = run_study("peers_accuracy", study, _OPTIONS)

if __name__ == "__main__":
    command()
