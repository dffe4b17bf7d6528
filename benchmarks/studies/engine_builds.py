"""Build times and sizes of TensorRT engines, and how many layers take INT8.

    python -m benchmarks.studies.engine_builds --data DIR

DIR is that of `benchmarks.studies.tensorrt_accuracy`. ResNet-20 and ResNet-18 are the trained
ones there; ResNet-34 and ResNet-50 have random weights, and ranges from the same photos: neither
build time nor layers depend on them. Each engine takes batches 1 to 32 and is built several
times; the time is that of the build stage, reading the ONNX file included. With TensorRT for RTX
no GPU is needed, and none is used.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import click

from benchmarks.studies.base import Results, run_study
from benchmarks.studies.subject import Case, Subject, cases, prepare_subject
from calibration.collect import CalibrateConfig, ranges_from_statistics
from deploy_tools.engines.build import BuildConfig, engine_from_onnx, weighted_nodes
from deploy_tools.engines.layers import precision_by_node
from deploy_tools.onnx_files import load_onnx
from deploy_tools.quantization.cast import fp16_from_onnx
from deploy_tools.quantization.static import StaticConfig, qdq_from_onnx
from deploy_tools.recipe import ModelTable

IMAGES = 16
BUILDS = 5
BATCH = "1:8:32"


def study(results: Results, data: Path, flavour: str) -> None:
    """Fill in one row an engine; a claim a model: every layer with weights takes INT8."""
    resnet20, _, flowers = cases(data)
    models = [(resnet20, ModelTable(resnet20.arch, str(data / "weights" / resnet20.checkpoint), num_classes=10))]  # fmt: skip
    if not results.quick:
        trained = str(data / "weights" / flowers.checkpoint)
        models.append((flowers, ModelTable("resnet18", trained, num_classes=5)))
        for arch in ("resnet34", "resnet50"):
            models.append((flowers, ModelTable(arch, num_classes=5, random_weights=True)))
    for case, model in models:
        with tempfile.TemporaryDirectory() as folder:
            subject = prepare_subject(Path(folder), model, case.given, case.data, (0,))
            _one_model(results, case, model, subject, flavour)


def _one_model(
    results: Results, case: Case, model: ModelTable, subject: Subject, flavour: str
) -> None:
    name = f"{model.arch}, {case.given.size[0] if case.given.size else '?'} pixels"
    for precision, path in _files(subject).items():
        engine = subject.folder / f"{precision}.engine"
        made = [
            engine_from_onnx(path, engine, BuildConfig(flavour, BATCH))
            for _ in range(2 if results.quick else BUILDS)
        ]
        seconds = [sidecar.build_seconds for sidecar in made]
        nodes = weighted_nodes(load_onnx(path))
        found = precision_by_node(made[-1].layers, nodes)
        int8 = sum(kind == "int8" for kind in found.values())
        results.row(
            model=name, file=precision, runs_in=made[-1].precision,
            seconds=statistics.median(seconds), seconds_min=min(seconds), seconds_max=max(seconds),
            builds=len(made), onnx_mb=path.stat().st_size / 1e6,
            engine_mb=engine.stat().st_size / 1e6, int8_layers=int8, layers=len(nodes),
            flavour=f"{made[-1].flavour} {made[-1].tensorrt_version}", gpu=made[-1].gpu,
        )  # fmt: skip
        if precision == "int8":
            claim = f"{name}: convolutions and Gemms of {len(nodes)} that take INT8"
            results.claim(claim, int8, ">=", len(nodes))


def _files(subject: Subject) -> dict[str, Path]:
    """Write the FP16 file and the INT8 file, its rest in FP16; return all three."""
    paths = {name: subject.folder / f"{name}.onnx" for name in ("fp16", "qdq", "int8")}
    seen = subject.statistics(subject.select(IMAGES, 0))
    table = ranges_from_statistics(seen, CalibrateConfig())
    qdq_from_onnx(subject.model, table, paths["qdq"], StaticConfig("tensorrt"))
    fp16_from_onnx(paths["qdq"], paths["int8"])
    fp16_from_onnx(subject.model, paths["fp16"])
    return {"fp32": subject.model, "fp16": paths["fp16"], "int8": paths["int8"]}


_OPTIONS = [
    click.Option(
        ["--data"],
        type=click.Path(path_type=Path),
        required=True,
        help="Folder with cifar10, flowers and weights.",
    ),
    click.Option(["--flavour"], default="tensorrt-rtx", show_default=True),
]
command = run_study("engine_builds", study, _OPTIONS)

if __name__ == "__main__":
    command()
