"""What each correction brings to static INT8, alone and together.

    python -m benchmarks.studies.ablation_accuracy --data DIR --model resnet20

DIR holds `cifar10/` (the test set and training images), `flowers/` (train and val) and
`weights/` (the public CIFAR-10 ResNets and the flower ResNet-18). Each seed draws other
calibration images from the training split; every file is judged on all evaluation images by its
agreement with FP32 and its logit SQNR, in onnxruntime, with the target's kernels for `ort-cpu`
and with the file's own arithmetic for `tensorrt` (simulated). Nothing is chosen here: every row
is a fixed setting, and where a row chooses (ranges auto, bias auto) it does so on held-out
calibration images.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import click

from benchmarks.accuracy import Accuracy
from benchmarks.studies.base import Results, run_study
from benchmarks.studies.ours import plain_settings
from benchmarks.studies.subject import (
    Case,
    Subject,
    cases,
    paired_difference,
    prepare_subject,
    shipped_case,
    spread,
)
from deploy_tools.data import open_source
from deploy_tools.errors import UserError, nearest
from deploy_tools.onnx_files import load_onnx
from deploy_tools.pipeline.images import CalibrationImages
from deploy_tools.pipeline.int8_settings import Int8Settings
from deploy_tools.pipeline.workshop import open_workshop
from deploy_tools.quantization.prepare import prepared
from deploy_tools.quantization.residual import main_branches
from deploy_tools.quantization.static import StaticConfig
from deploy_tools.recipe import METHODS, ModelTable, QatTable
from deploy_tools.runtimes import RuntimeConfig

SEEDS = 5
QUICK_IMAGES = 2000
_Row = tuple[Int8Settings, QatTable | None]
_RUNTIMES = {
    "ort-cpu": RuntimeConfig("onnxruntime"),
    "tensorrt": RuntimeConfig("onnxruntime", fusions=False),
}


def study(results: Results, data: Path, model: str, target: str, seeds: int | None) -> None:
    """Fill in one row a setting: mean and spread over the calibration seeds."""
    case = case_named(data, model)
    found: dict[str, list[Accuracy]] = {}
    with tempfile.TemporaryDirectory() as folder:
        subject = prepared_subject(Path(folder), case, data, results.quick)
        results.row(model=case.name, row="fp32", correct=int(subject.baseline.correct.sum()))
        rows = _rows(subject, target, results.quick)
        for seed in range(seeds or (1 if results.quick else SEEDS)):
            for name, accuracy in _one_seed(subject, case.images, seed, rows, target):
                found.setdefault(name, []).append(accuracy)
    for name, accuracies in found.items():
        by_seed = [accuracy.logit_sqnr_db for accuracy in accuracies]
        results.row(
            model=case.name, target=target, row=name, **spread(accuracies), sqnr_db_by_seed=by_seed
        )
    _claims(results, found)


def case_named(data: Path, model: str) -> Case:
    """Return a case by its name; UserError with the nearest where there is none."""
    known = {case.name: case for case in (*cases(data), shipped_case())}
    if model not in known:
        raise UserError(f'model "{model}" is not known.', nearest(model, known))
    return known[model]


def prepared_subject(folder: Path, case: Case, data: Path, quick: bool) -> Subject:
    """Return a case's model and images; quick: judged on the first 2,000 only."""
    evaluation = open_source(case.data.source, case.data.root, case.data.evaluation)
    images = tuple(range(min(len(evaluation), QUICK_IMAGES))) if quick else None
    checkpoint = str(data / "weights" / case.checkpoint)
    table = ModelTable(case.arch, checkpoint, num_classes=case.num_classes)
    return prepare_subject(folder, table, case.given, case.data, images)


def _rows(subject: Subject, target: str, quick: bool) -> dict[str, _Row]:
    """Return the settings by row name."""
    full = StaticConfig(target)
    tensor = replace(full, per_channel=False)
    base, default = plain_settings(full, "minmax"), Int8Settings(full)
    rows: dict[str, _Row] = {
        "plain, minmax": (base, None),
        "bias": (replace(base, bias_correction=True), None),
        "equalize": (replace(base, equalize=True), None),
        "gptq": (replace(base, rounding="gptq"), None),
        "equalize + gptq": (replace(base, equalize=True, rounding="gptq"), None),
        "default (equalize + gptq + auto ranges + auto bias)": (default, None),
    }
    if quick:
        return rows
    rows |= {f"plain, {name}": (plain_settings(full, name), None) for name in METHODS[1:]}
    rows |= {
        "plain, auto": (plain_settings(full, "auto"), None),
        "equalize + gptq + bias": (
            Int8Settings(full, ranges="minmax", bias_correction=True), None,
        ),
        "equalize + gptq + mse": (Int8Settings(full, "mse", bias_correction=False), None),
        "equalize + gptq + auto": (Int8Settings(full, bias_correction=False), None),
        "default + qat without labels": (default, QatTable()),
        "per tensor: plain, minmax": (plain_settings(tensor, "minmax"), None),
        "per tensor: default": (Int8Settings(tensor), None),
    }  # fmt: skip
    if target == "ort-cpu":
        adds = tuple(main_branches(prepared(load_onnx(subject.model))))
        free = replace(full, float_branches=adds)
        rows |= {
            "branches in float: plain, minmax": (plain_settings(free, "minmax"), None),
            "branches in float: default": (Int8Settings(free), None),
        }
    return rows


def _one_seed(
    subject: Subject, count: int, seed: int, rows: Mapping[str, _Row], target: str
) -> Iterator[tuple[str, Accuracy]]:
    selection = subject.select(count, seed)
    images = CalibrationImages(subject.train, selection, lambda: subject.spec)
    path = subject.folder / "row.onnx"
    with (
        tempfile.TemporaryDirectory() as folder,
        open_workshop(Path(folder), subject.model, images) as workshop,
    ):
        for name, (settings, qat) in rows.items():
            workshop.make(settings, path, qat)
            yield name, subject.judge(path, _RUNTIMES[target])


def _claims(results: Results, found: Mapping[str, list[Accuracy]]) -> None:
    base = found["plain, minmax"]
    for name in ("equalize", "gptq", "equalize + gptq"):
        mean, low, _ = paired_difference(found[name], base)
        results.claim(f"{name} over plain min-max, dB (mean)", mean, ">=", 0.0)
        if len(base) > 1:
            results.claim(f"{name} over plain min-max, dB (lower end of 95 %)", low, ">=", 0.0)
    default = next(name for name in found if name.startswith("default ("))
    best = max(statistics.fmean([a.logit_sqnr_db for a in each]) for each in found.values())
    ours = statistics.fmean([a.logit_sqnr_db for a in found[default]])
    results.claim("default less than 1 dB below the best row", best - ours, "<=", 1.0)


_OPTIONS = [
    click.Option(["--data"], type=click.Path(path_type=Path), required=True, help="See above."),
    click.Option(["--model"], default="resnet20", show_default=True, help="One of the cases."),
    click.Option(
        ["--target"], type=click.Choice(list(_RUNTIMES)), default="ort-cpu", show_default=True
    ),
    click.Option(["--seeds"], type=click.IntRange(1, SEEDS), help="How many calibration seeds."),
]
command = run_study("ablation_accuracy", study, _OPTIONS)

if __name__ == "__main__":
    command()
