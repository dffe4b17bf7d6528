"""What the accuracy studies share: a trained model with its images, and files judged on them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.accuracy import Accuracy, accuracy_from_predictions
from benchmarks.predictions import Predictions, predictions_from_images
from calibration.collect import CalibrateConfig, statistics_from_images
from calibration.select import SelectConfig, Selection, select_images
from calibration.statistics import Statistics
from deploy_tools.data import open_source
from deploy_tools.data.source import ImageSource
from deploy_tools.data.spec import InputSpec
from deploy_tools.export import onnx_from_module
from deploy_tools.onnx_files import load_onnx
from deploy_tools.pipeline.model import fold_model, load_model
from deploy_tools.quantization.static import activation_tensors
from deploy_tools.recipe import InputTable, ModelTable
from deploy_tools.runtimes import RuntimeConfig, open_session

CIFAR_INPUT = InputTable(size=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""Of akamaster/pytorch_resnet_cifar10, the public CIFAR-10 ResNets."""


@dataclass(frozen=True)
class Data:
    """Where the images are. calibration, evaluation: splits. source: a name in `SOURCES`."""

    source: str
    root: Path
    calibration: str = "train"
    evaluation: str = "test"


@dataclass(frozen=True)
class Subject:
    """What every tool gets: the FP32 file, the images, and a folder to write in.

    baseline: the FP32 file's predictions. images: positions of the evaluation images that are
    used, None for all.
    """

    model: Path
    spec: InputSpec
    train: ImageSource
    test: ImageSource
    baseline: Predictions
    folder: Path
    images: tuple[int, ...] | None = None

    def select(self, count: int, seed: int) -> Selection:
        """Draw calibration images, as many of each class."""
        return select_images(self.train, SelectConfig(count, "stratified", seed))

    def statistics(self, selection: Selection) -> Statistics:
        """Run the chosen images through the FP32 file once."""
        tensors = activation_tensors(load_onnx(self.model))
        config = CalibrateConfig()
        return statistics_from_images(self.model, tensors, self.train, selection, self.spec, config)

    def judge(self, path: Path, config: RuntimeConfig) -> Accuracy:
        """Compare a file with the FP32 file on the evaluation images."""
        return accuracy_from_predictions(_predict(self, path, config), self.baseline)


def prepare_subject(
    folder: Path,
    model: ModelTable,
    given: InputTable,
    data: Data,
    images: tuple[int, ...] | None = None,
) -> Subject:
    """Export the model to `folder`/fp32.onnx, BatchNorm folded, and evaluate it."""
    loaded = load_model(model, given)
    path = folder / "fp32.onnx"
    onnx_from_module(fold_model(loaded)[0], loaded.spec, path)
    train = open_source(data.source, data.root, data.calibration)
    test = open_source(data.source, data.root, data.evaluation)
    session = open_session(path)
    try:
        baseline = predictions_from_images(session, test, loaded.spec, indices=images)
    finally:
        session.close()
    return Subject(path, loaded.spec, train, test, baseline, folder, images)


def spread(accuracies: Sequence[Accuracy]) -> dict[str, float]:
    """Return mean and range over the seeds, as columns of a row."""
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


def mean_sqnr(accuracies: Sequence[Accuracy]) -> float:
    """Return the mean logit SQNR over the seeds, in dB."""
    return statistics.mean([a.logit_sqnr_db for a in accuracies])


def _predict(subject: Subject, path: Path, config: RuntimeConfig) -> Predictions:
    session = open_session(path, config)
    try:
        return predictions_from_images(session, subject.test, subject.spec, indices=subject.images)
    finally:
        session.close()
