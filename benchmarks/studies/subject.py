"""What the accuracy studies share: a trained model with its images, and files judged on them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np

from benchmarks.accuracy import Accuracy, accuracy_from_predictions
from benchmarks.peers.base import Job
from benchmarks.predictions import Predictions, predictions_from_images
from calibration.collect import CalibrateConfig, statistics_from_images
from calibration.select import SelectConfig, Selection, select_images
from calibration.statistics import Statistics
from deploy_tools.data import open_source
from deploy_tools.data.source import ImageSource
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import UserError
from deploy_tools.export import onnx_from_module
from deploy_tools.onnx_files import load_onnx
from deploy_tools.pipeline.model import fold_model, load_model
from deploy_tools.quantization.static import activation_tensors
from deploy_tools.recipe import InputTable, ModelTable
from deploy_tools.runtimes import RuntimeConfig, Session, open_session

CIFAR_INPUT = InputTable(size=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""Of akamaster/pytorch_resnet_cifar10, the public CIFAR-10 ResNets."""

# Student's t, 97.5 %, by the number of seeds.
_T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


@dataclass(frozen=True)
class Data:
    """Where the images are. calibration, evaluation: splits. source: a name in `SOURCES`.

    root: None only for fashion-mnist, which is then looked for and downloaded.
    """

    source: str
    root: Path | None
    calibration: str = "train"
    evaluation: str = "test"


@dataclass(frozen=True)
class Case:
    """A trained model, by name, and how many images calibrate it.

    checkpoint: a file in the folder of the weights, or an absolute path; "" for random weights.
    """

    name: str
    arch: str
    checkpoint: str
    num_classes: int
    given: InputTable
    data: Data
    images: int


@dataclass(frozen=True)
class Subject:
    """What every tool gets: the FP32 file, the images, and a folder to write in.

    baseline: the FP32 file's predictions. images: positions of the evaluation images that are
    used, None for all. data, origin: where the images and the weights came from.
    """

    model: Path
    spec: InputSpec
    train: ImageSource
    test: ImageSource
    baseline: Predictions
    folder: Path
    images: tuple[int, ...] | None = None
    data: Data | None = None
    origin: ModelTable | None = None

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
        return self.judge_session(open_session(path, config))

    def judge_session(self, session: Session) -> Accuracy:
        """Compare a session with the FP32 file on the evaluation images, and close it."""
        try:
            found = predictions_from_images(session, self.test, self.spec, indices=self.images)
        finally:
            session.close()
        return accuracy_from_predictions(found, self.baseline)

    def job(self, selection: Selection, held_out: int = 0) -> Job:
        """Return what a tool in a process of its own gets.

        held_out: how many images of the calibration split, none of them in `selection`, go along
        for tools that check themselves.
        """
        if self.data is None:
            raise UserError("this subject does not know where its images came from.")
        used = set(selection.indices)
        spare = [index for index in range(len(self.train)) if index not in used]
        order = np.random.default_rng(selection.seed).permutation(spare)[:held_out]
        return Job(
            model=self.model,
            spec=self.spec,
            source=self.data.source,
            root=self.data.root,
            split=self.data.calibration,
            indices=selection.indices,
            held_out=tuple(sorted(int(index) for index in order)),
            origin=self.origin,
        )


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
    return Subject(path, loaded.spec, train, test, baseline, folder, images, data, model)


def cases(root: Path) -> tuple[Case, ...]:
    """Return the public models; root: the folder with cifar10, flowers and weights."""
    cifar = Data("cifar10", root / "cifar10")
    flowers = Data("imagefolder", root / "flowers", evaluation="val")
    photos = InputTable(
        size=(224, 224), mean=CIFAR_INPUT.mean, std=CIFAR_INPUT.std, resize=232, crop="center"
    )
    return (
        Case("resnet20", "resnet20-cifar-a", "resnet20-12fca82f.th", 10, CIFAR_INPUT, cifar, 500),
        Case("resnet32", "resnet32-cifar-a", "resnet32-d509ac18.th", 10, CIFAR_INPUT, cifar, 500),
        Case(
            "resnet18-flowers", "resnet18", "resnet18-flowers.safetensors", 5, photos, flowers, 256
        ),
    )


def random_case(root: Path) -> Case:
    """Return ResNet-50 with random weights, for speed alone; it sees the photos of `cases`."""
    flowers = cases(root)[2]
    return replace(
        flowers, name="resnet50-random", arch="resnet50", checkpoint="", num_classes=1000, images=64
    )


def shipped_case() -> Case:
    """Return the Fashion-MNIST ResNet-20 that the package ships; its checkpoint says its input."""
    path = resources.files("deploy_tools") / "assets" / "resnet20-fashion-mnist.safetensors"
    data = Data("fashion-mnist", None)
    return Case("resnet20-fashion", "resnet20-cifar", str(path), 10, InputTable(), data, 500)


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


def paired_difference(
    ours: Sequence[Accuracy], peers: Sequence[Accuracy]
) -> tuple[float, float, float]:
    """Return the mean difference of the SQNR over the seeds, dB, and its 95 % interval.

    Both used the same images at each seed: Student's t over the paired differences.
    """
    pairs = zip(ours, peers, strict=True)
    differences = [a.logit_sqnr_db - b.logit_sqnr_db for a, b in pairs]
    mean, count = statistics.fmean(differences), len(differences)
    half = _T95[count] * statistics.stdev(differences) / math.sqrt(count) if count > 1 else math.inf
    return mean, mean - half, mean + half
