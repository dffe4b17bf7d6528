"""How long the pipeline itself takes, step by step, beside other tools on their part of it.

    python -m benchmarks.studies.pipeline_time --data PHOTOS [--quick] [--json] [-o FILE]

A ResNet-50 (ResNet-18 with --quick) with random weights at 224x224 and 512 (64) photos; each part
is a process of its own, and one that fails is a row with the reason. The other tools get the FP32
file and write an INT8 file: calibration and quantization. Ours does the same once without
corrections, with the same ranges as onnxruntime's default, and once as the commands do it, which
corrects and tries ranges in the network. The steps of the latter show where its time goes.
PHOTOS: an image folder with splits train and val.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from benchmarks.peers.base import Job, PeerFile
from benchmarks.peers.measure import measure
from benchmarks.peers.worker import short
from benchmarks.predictions import predictions_from_images
from benchmarks.studies.base import Results, run_study
from benchmarks.studies.pipeline_parts import read_steps
from benchmarks.studies.subject import Data, Subject, prepare_subject
from deploy_tools.errors import DeployToolsError
from deploy_tools.recipe import InputTable, ModelTable
from deploy_tools.runtimes import open_session

PHOTOS = InputTable(
    size=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize=232,
    crop="center",
)  # fmt: skip
US = "deploy-tools"
DEFAULT, PLAIN = "quantize, default", "quantize, plain minmax"
_PARTS = "benchmarks.studies.pipeline_parts"
_MIB = 1 << 20
_HOTTEST = 3
_FULL, _QUICK = ("resnet50", 512, 512), ("resnet18", 64, 64)
"""Architecture, calibration images, images of the report."""
_TIMEOUT_S = 4 * 3600.0


@dataclass(frozen=True)
class Part:
    """One process: whose, what it does, the adapter with its settings, and the file it writes."""

    tool: str
    name: str
    adapter: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    file: str = "other.onnx"


def parts(split: str, evaluated: int) -> Iterator[Part]:
    """Yield what the claims compare first; report comes after what it reads."""
    yield Part(US, PLAIN, "benchmarks.studies.ours", {"row": "plain minmax"})
    for method in ("MinMax",):  # the others keep every activation of every image in memory
        yield Part("onnxruntime", method, "benchmarks.peers.onnxruntime_static", {"method": method})
    for batch in (1, 8):
        for suffix in (".onnx", ".xml"):
            settings = {"batch": batch, "correction": "fast"}
            name = f"default, batch {batch}, {suffix}"
            yield Part("nncf", name, "benchmarks.peers.nncf_static", settings, f"nncf{suffix}")
    yield Part(US, "fold and export", "benchmarks.studies.pipeline_export", file="again.onnx")
    yield Part(US, DEFAULT, _PARTS, {"part": "quantize"}, "int8.onnx")
    settings = {"part": "report", "split": split, "images": evaluated}
    yield Part(US, "report", _PARTS, settings, "report.json")


def main(results: Results, data: Path, images: int | None = None) -> None:
    """CPU seconds, wall time and peak memory of the pipeline's parts and of other tools'."""
    arch, count, evaluated = _QUICK if results.quick else _FULL
    count = images or count
    with tempfile.TemporaryDirectory() as folder:
        table = ModelTable(arch, random_weights=True, num_classes=1000)
        where = Data("imagefolder", data, evaluation="val")
        chosen = tuple(range(evaluated))
        subject = prepare_subject(Path(folder), table, PHOTOS, where, chosen)
        job = subject.job(subject.select(count, seed=0))
        found: dict[str, PeerFile] = {}
        for name, cost in _measured(results, subject, job, evaluated):
            found[name] = cost
            if name == DEFAULT:
                _steps(results, cost)
        _claims(results, found)


def _measured(
    results: Results, subject: Subject, job: Job, evaluated: int
) -> Iterator[tuple[str, PeerFile]]:
    """Run every part and yield its cost by name; what cannot run is a row with the reason."""
    for part in parts(subject.test.split, evaluated):
        row = {"tool": part.tool, "part": part.name, "images": len(job.indices)}
        path = subject.folder / part.file
        try:
            if part.name == "report":
                _save_predictions(subject)
            cost = measure(part.adapter, job, path, part.settings, timeout_s=_TIMEOUT_S)
        except DeployToolsError as error:
            results.row(**row, status="did not run", reason=short(str(error)))
            continue
        results.row(
            **row, seconds=cost.seconds, cpu_seconds=cost.cpu_seconds,
            peak_mib=round(cost.peak_rss_bytes / _MIB, 1),
        )  # fmt: skip
        yield (part.name if part.tool == US else f"{part.tool}, {part.name}"), cost


def _save_predictions(subject: Subject) -> None:
    """Write what the report reads; the models' own time is no part of it."""
    folder = subject.folder / "predictions"
    subject.baseline.save(folder / "fp32-ort.npz")
    session = open_session(subject.folder / "int8.onnx")
    try:
        found = predictions_from_images(session, subject.test, subject.spec, indices=subject.images)
    finally:
        session.close()
    found.save(folder / "int8-static-ort.npz")


def _steps(results: Results, cost: PeerFile) -> None:
    steps = read_steps(cost.path)
    for place, (step, seconds) in enumerate(steps.items(), start=1):
        share = seconds / max(cost.cpu_seconds, 1e-9)
        results.row(
            tool=US, part=DEFAULT, step=step, cpu_seconds=seconds, share=share,
            hottest=place <= _HOTTEST,
        )  # fmt: skip


def _claims(results: Results, found: Mapping[str, PeerFile]) -> None:
    """Ours without corrections costs no more than the quickest other tool, each with its default."""
    others = {name: cost for name, cost in found.items() if name.startswith(("onnx", "nncf"))}
    if not others or PLAIN not in found:
        results.claim("plain quantization over the quickest other tool, CPU time", None, "<=", 1.0)
        return
    quickest = min(others, key=lambda name: others[name].cpu_seconds)
    ratio = found[PLAIN].cpu_seconds / others[quickest].cpu_seconds
    results.claim(f"plain quantization over {quickest}, CPU time", ratio, "<=", 1.0)
    memory = found[PLAIN].peak_rss_bytes / min(c.peak_rss_bytes for c in others.values())
    results.claim("plain quantization over the leanest other tool, peak memory", memory, "<=", 1.0)


_OPTIONS = [
    click.Option(
        ["--data"], type=click.Path(path_type=Path, exists=True), required=True, help="PHOTOS."
    ),
    click.Option(["--images"], type=click.IntRange(min=4), help="Calibration images."),
]
command = run_study("pipeline_time", main, _OPTIONS)

if __name__ == "__main__":
    command()
