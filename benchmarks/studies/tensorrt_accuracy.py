"""The INT8 files for TensorRT, simulated, beside onnxruntime's S8S8 symmetric file.

    python -m benchmarks.studies.tensorrt_accuracy --data DIR

DIR holds `cifar10/` (the test set and training images), `flowers/` (train and val) and
`weights/` (the public CIFAR-10 ResNets and the flower ResNet-18). Each seed draws other
calibration images from the training split; every file is judged on all evaluation images by its
agreement with FP32 and its logit SQNR. Nothing is chosen here: the ranges are the default, mse.

Simulated: the very Q/DQ file that TensorRT gets runs through onnxruntime with its graph
optimizations off, so the arithmetic is what the file says; TensorRT's own kernels may round in
other places. onnxruntime's files are what its quantize_static makes, with the ranges of its
MinMax and its Percentile and with quantized logits, and run as onnxruntime runs them. The claims
hold ours against the better of the two, and min-max against min-max, which is the layout alone.
Which ranges are the default was decided on other runs of the CIFAR-10 models; see
docs/measurements.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from benchmarks.accuracy import Accuracy
from benchmarks.peers import onnxruntime_static
from benchmarks.studies.base import Results, run_study
from benchmarks.studies.subject import (
    Case,
    Subject,
    cases,
    mean_sqnr,
    paired_difference,
    prepare_subject,
    spread,
)
from calibration.collect import CalibrateConfig, ranges_from_statistics
from calibration.select import Selection
from deploy_tools.quantization.cast import fp16_from_onnx
from deploy_tools.quantization.static import StaticConfig, qdq_from_onnx
from deploy_tools.recipe import ModelTable
from deploy_tools.runtimes import RuntimeConfig

SEEDS = 5
QUICK_SEEDS = 2
QUICK_IMAGES = 2000
SIMULATED = RuntimeConfig(fusions=False)
OURS = "tensorrt, simulated"
PEERS = tuple(("onnxruntime", method, "fp32") for method in ("MinMax", "Percentile"))
_Key = tuple[str, str, str]  # tool, ranges, what is not INT8 runs in


def study(results: Results, data: Path) -> None:
    """Fill in, for each model, one row a file: mean and spread over the calibration seeds."""
    for case in cases(data)[: 1 if results.quick else None]:
        checkpoint = str(data / "weights" / case.checkpoint)
        model = ModelTable(case.arch, checkpoint, num_classes=case.num_classes)
        images = tuple(range(QUICK_IMAGES)) if results.quick else None
        with tempfile.TemporaryDirectory() as folder:
            subject = prepare_subject(Path(folder), model, case.given, case.data, images)
            _one_model(results, case, subject)


def _one_model(results: Results, case: Case, subject: Subject) -> None:
    correct = int(subject.baseline.correct.sum())
    results.row(model=case.name, tool="fp32", images=len(subject.baseline), correct=correct)
    found: dict[_Key, list[Accuracy]] = {}
    for seed in range(QUICK_SEEDS if results.quick else SEEDS):
        selection = subject.select(case.images, seed)
        for key, accuracy in (*_ours(subject, selection), *_peers(subject, selection)):
            found.setdefault(key, []).append(accuracy)
    for (tool, ranges, rest), accuracies in found.items():
        by_seed = [accuracy.logit_sqnr_db for accuracy in accuracies]
        results.row(
            model=case.name, tool=tool, ranges=ranges, rest=rest, **spread(accuracies),
            sqnr_db_by_seed=by_seed,
        )  # fmt: skip
    better = max(PEERS, key=lambda key: mean_sqnr(found[key]))
    for (ranges, rest), peer in {
        ("mse", "fp32"): better,
        ("mse", "fp16"): better,
        # The layout alone: the same ranges on both sides.
        ("minmax", "fp32"): PEERS[0],
    }.items():
        mean, low, high = paired_difference(found[OURS, ranges, rest], found[peer])
        results.claim(
            f"{case.name}: SQNR of the file for TensorRT, {ranges} ranges, the rest in {rest}, "
            f"over onnxruntime's S8S8 with {peer[1]}, dB "
            f"[{low:.2f}, {high:.2f}]",
            mean,
            ">=",
            0.0,
        )


def _ours(subject: Subject, selection: Selection) -> Iterator[tuple[_Key, Accuracy]]:
    """Judge our file with the default ranges, the same with FP16 for the rest, and min-max."""
    seen = subject.statistics(selection)
    path, cast = subject.folder / "tensorrt.onnx", subject.folder / "tensorrt-fp16.onnx"
    for ranges in ("mse", "minmax"):
        table = ranges_from_statistics(seen, CalibrateConfig(method=ranges))
        qdq_from_onnx(subject.model, table, path, StaticConfig("tensorrt"))
        yield (OURS, ranges, "fp32"), subject.judge(path, SIMULATED)
        if ranges == "mse":
            fp16_from_onnx(path, cast)
            yield (OURS, ranges, "fp16"), subject.judge(cast, SIMULATED)


def _peers(subject: Subject, selection: Selection) -> Iterator[tuple[_Key, Accuracy]]:
    """Judge onnxruntime's own S8S8 files, made by its calibrators from the same images."""
    path, job = subject.folder / "peer.onnx", subject.job(selection)
    for key in PEERS:
        onnxruntime_static.quantize(job, path, key[1], "s8-symmetric")
        yield key, subject.judge(path, RuntimeConfig())


_OPTIONS = [
    click.Option(
        ["--data"],
        type=click.Path(path_type=Path),
        required=True,
        help="Folder with cifar10, flowers and weights.",
    ),
]
command = run_study("tensorrt_accuracy", study, _OPTIONS)

if __name__ == "__main__":
    command()
