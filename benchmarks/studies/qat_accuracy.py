"""What fine-tuning brings to static INT8: on the easy setting, and on one that loses a lot.

    python -m benchmarks.studies.qat_accuracy --data DIR --model resnet20 [--plot FILE]

DIR as for `ablation_accuracy`. "easy" is the default of the commands; "hard" has one weight scale
a tensor and weights of 4 bits, simulated in the 8-bit file. Both are fine-tuned against the FP32
model's logits, without labels, on images of the training split; the epoch is chosen on a part of
them. Every file is judged on all evaluation images, which choose nothing. The rate of the hard
setting was chosen on held-out training images.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from benchmarks.accuracy import Accuracy
from benchmarks.report.curves import qat_plot
from benchmarks.report.sensitivity import as_file
from benchmarks.studies.ablation_accuracy import case_named, prepared_subject
from benchmarks.studies.base import Results, run_study
from benchmarks.studies.subject import Subject, paired_difference, spread
from deploy_tools.artifacts import write_text
from deploy_tools.pipeline.images import CalibrationImages
from deploy_tools.pipeline.int8_settings import Int8Settings
from deploy_tools.pipeline.workshop import open_workshop
from deploy_tools.quantization.static import StaticConfig
from deploy_tools.recipe import QatTable
from deploy_tools.runtimes import RuntimeConfig

SEEDS = 3
IMAGES = 2000


@dataclass(frozen=True)
class Setting:
    """What is fine-tuned, how, and by how many dB at least it shall gain."""

    int8: Int8Settings
    qat: QatTable
    gain_db: float


def settings(quick: bool) -> dict[str, Setting]:
    """Return the settings by name."""
    static = StaticConfig("ort-cpu")
    easy = QatTable(epochs=2 if quick else 30, images=200 if quick else IMAGES)
    hard = replace(easy, weight_bits=4, learning_rate=0.2)
    tensor = replace(static, per_channel=False)
    return {
        "easy": Setting(Int8Settings(static), easy, 0.0),
        "hard": Setting(Int8Settings(tensor), hard, 0.0 if quick else 4.0),
    }


def study(results: Results, data: Path, model: str, seeds: int | None, plot: Path | None) -> None:
    """Fill in, for each setting, a row before and one after, and the course of the first seed."""
    case = case_named(data, model)
    with tempfile.TemporaryDirectory() as folder:
        subject = prepared_subject(Path(folder), case, data, results.quick)
        results.row(model=case.name, row="fp32", correct=int(subject.baseline.correct.sum()))
        for name, setting in settings(results.quick).items():
            found: dict[str, list[Accuracy]] = {"start": [], "qat": []}
            curve: list[dict[str, float]] = []
            for seed in range(seeds or (1 if results.quick else SEEDS)):
                start, trained, course = _one_seed(subject, case.images, seed, setting)
                found["start"].append(start)
                found["qat"].append(trained)
                curve = curve or course
            for row, accuracies in found.items():
                by_seed = [accuracy.logit_sqnr_db for accuracy in accuracies]
                top1 = statistics.fmean([accuracy.top1 for accuracy in accuracies])
                results.row(
                    model=case.name, setting=name, row=row, top1=top1, **spread(accuracies),
                    sqnr_db_by_seed=by_seed,
                )  # fmt: skip
            results.rows.append({"model": case.name, "setting": name, "row": "curve of seed 0",
                                 "curve": curve})  # fmt: skip
            gain, low, _ = paired_difference(found["qat"], found["start"])
            what = f"{name}: SQNR after fine-tuning over before, dB"
            results.claim(f"{what} (mean)", gain, ">=", setting.gain_db)
            if len(found["qat"]) > 1:
                results.claim(f"{what} (lower end of 95 %)", low, ">=", setting.gain_db)
            if plot is not None and name == "hard":
                write_text(plot, as_file(qat_plot(curve)))


def _one_seed(
    subject: Subject, count: int, seed: int, setting: Setting
) -> tuple[Accuracy, Accuracy, list[dict[str, float]]]:
    images = CalibrationImages(subject.train, subject.select(count, seed), lambda: subject.spec)
    start, trained = subject.folder / "start.onnx", subject.folder / "trained.onnx"
    runtime = RuntimeConfig("onnxruntime")
    with (
        tempfile.TemporaryDirectory() as folder,
        open_workshop(Path(folder), subject.model, images) as workshop,
    ):
        table = replace(setting.qat, seed=seed)
        # Fewer bits are simulated by the fine-tuning alone, so the start is one that stands still.
        still = replace(table, epochs=1, learning_rate=1e-12, range_learning_rate=0.0)
        standing = still if table.weight_bits < 8 else None
        workshop.make(setting.int8, start, standing)
        workshop.make(setting.int8, trained, table)
        course: dict[str, Any] = workshop.runner.directory.artifacts["trained-qat"].notes
        return subject.judge(start, runtime), subject.judge(trained, runtime), course["curve"]


_OPTIONS = [
    click.Option(["--data"], type=click.Path(path_type=Path), required=True, help="See above."),
    click.Option(["--model"], default="resnet20", show_default=True, help="One of the cases."),
    click.Option(["--seeds"], type=click.IntRange(1, 5), help="How many calibration seeds."),
    click.Option(
        ["--plot"], type=click.Path(path_type=Path), metavar="FILE",
        help="Draw the course of the hard setting, SVG.",
    ),
]  # fmt: skip
command = run_study("qat_accuracy", study, _OPTIONS)

if __name__ == "__main__":
    command()
