"""Small real models and reports for the tests of `benchmarks`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.accuracy import accuracy_from_predictions
from benchmarks.predictions import Predictions
from benchmarks.report import build_report, failed, skipped, variant_entry
from benchmarks.samples import SampleSet, Slot
from benchmarks.speed import SpeedRun, save_samples
from deploy_tools.data.spec import InputSpec

SPEC = InputSpec(size=(8, 8), mean=(0.5,), std=(0.25,))
CLASSES = 6


def tiny_model(channels: int = 1, hidden: int = 4) -> bytes:
    """A convolution, a global mean and a Gemm, with a dynamic batch."""
    generator = np.random.default_rng(3)
    weights = {
        "w": generator.normal(size=(hidden, channels, 3, 3)).astype(np.float32),
        "g": generator.normal(size=(hidden, CLASSES)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "g"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", channels, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opset = [helper.make_opsetid("", 20)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny_model())
    return path


def some_predictions(noise: float = 0.0, images: int = 300, seed: int = 0) -> Predictions:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, images)
    logits = generator.normal(size=(images, CLASSES)) + 2.0 * np.eye(CLASSES)[labels]
    logits += noise * np.random.default_rng(seed + 1).normal(size=logits.shape)
    ids = tuple(f"test/{index:06d}" for index in range(images))
    return Predictions(ids, labels, logits.astype(np.float32), "d" * 64)


@pytest.fixture
def predictions() -> Callable[..., Predictions]:
    return some_predictions


def some_runs(times_ms: dict[str, float], baseline: str, rounds: int = 6) -> list[SpeedRun]:
    """Runs with planted times: a call takes 1 % longer in each further round."""
    runs = []
    for scenario, batch in (("single-stream", 1), ("offline", 8)):
        sets = {
            variant: SampleSet(variant, scenario, batch, 2, 1, _slots(time * batch, rounds))
            for variant, time in times_ms.items()
        }
        runs += [SpeedRun(samples, sets[baseline]) for samples in sets.values()]
    return runs


def _slots(time_ms: float, rounds: int) -> tuple[Slot, ...]:
    slots = []
    for number in range(rounds):
        durations = np.full(20, round(1e6 * time_ms * (1 + 0.01 * number)), np.int64)
        slots.append(Slot(number, 0, np.cumsum(durations) - durations, durations))
    return tuple(slots)


@pytest.fixture
def report(tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """A valid report of three variants, with its predictions and samples in a folder."""
    folder = tmp_path / "run"
    base, quantized = some_predictions(), some_predictions(0.4)
    base.save(folder / "predictions" / "fp32-ort.npz")
    quantized.save(folder / "predictions" / "int8-static-ort.npz")
    runs = some_runs({"fp32-ort": 2.0, "int8-static-ort": 1.0}, "fp32-ort")
    save_samples(runs, folder)
    common = {"runtime": "onnxruntime", "provider": "CPUExecutionProvider"}
    variants = [
        variant_entry(
            id=name,
            precision=precision,
            runs_in=precision,
            method=None if name == "fp32-ort" else "static",
            target=None if name == "fp32-ort" else "ort-cpu",
            file=f"{name}.onnx",
            sha256="a" * 64,
            size_bytes=size,
            accuracy=accuracy_from_predictions(found, base),
            speed=[run for run in runs if run.variant == name],
            predictions=f"predictions/{name}.npz",
            samples=f"samples/{name}.jsonl",
            peak_rss_bytes=100_000_000,
            **common,
        )
        for name, precision, found, size in (
            ("int8-static-ort", "int8", quantized, 300_000),
            ("fp32-ort", "fp32", base, 1_100_000),
        )
    ]
    variants.append(
        variant_entry(
            id="int8-tensorrt",
            precision="int8",
            method="static",
            target="tensorrt",
            runtime="tensorrt",
            provider=None,
            build=failed("the builder said <b>no</b> | really"),
            accuracy=skipped("it was not built"),
            speed=skipped("it was not built"),
        )
    )
    return (
        build_report(
            tool={"name": "deploy-tools", "version": "0"},
            model={"arch": "resnet20-cifar", "classes": [f"kind {i}" for i in range(CLASSES)]},
            data={"name": "some-images", "split": "test", "images": 300, "sha256": "d" * 64},
            calibration={"images": 32, "sha256": "c" * 64, "choose": "stratified", "seed": 0},
            environment={
                "cpu": {"model": "A CPU"},
                "limits": {"cpus": None},
                "memory_bytes": 8 * 10**9,
            },
            baseline="fp32-ort",
            variants=variants,
            command="deploy-tools run recipe.toml --set data.root='<here>'",
        ),
        folder,
    )
