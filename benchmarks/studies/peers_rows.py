"""Which files `peers_accuracy` makes: every tool, its settings, and where each file runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.peers import onnxruntime_static
from benchmarks.peers.sessions import SIMULATED
from benchmarks.studies.ours import DEFAULT, FREE, OURS

US = "deploy-tools"
PLAIN = "default"
FEW, PER_TENSOR, S8S8 = "32 images", "per-tensor weights", "S8S8"
TENSORRT = "S8S8 symmetric"
HARD = (FEW, PER_TENSOR, S8S8, TENSORRT)
"""Settings that cost more: few calibration images, one weight scale a tensor, signed grids; the
last is what TensorRT takes."""
FEW_IMAGES = 32
DEFAULT_METHODS = (DEFAULT, FREE, f"{DEFAULT}, for arm", f"{DEFAULT}, for tensorrt")
"""The methods of our rows that choose nothing by hand."""
_ONNX = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Row:
    """One file: a tool with its settings, and the runtimes that judge it.

    setting: PLAIN or one of HARD. adapter: the module that makes the file. suffix: its format.
    seeds: at most so many calibration seeds, 0 for all: 1 where images do not matter, where it
        takes long, or where the row only documents what a setting does. quick: part of --quick.
    environment: the tool's own environment in `benchmarks.peers.environment`, "" for ours.
    also: other settings that the file is an example of. whole: False where convolutions stay in
        float; such rows are shown and not compared with. free: its convolutions' outputs are not
        quantized; compared with our rows of that kind only.
    """

    tool: str
    method: str
    adapter: str
    options: dict[str, Any] = field(default_factory=dict)
    runtimes: tuple[str, ...] = _ONNX
    setting: str = PLAIN
    suffix: str = ".onnx"
    seeds: int = 0
    quick: bool = False
    environment: str = ""
    also: tuple[str, ...] = ()
    whole: bool = True
    free: bool = False

    @property
    def ours(self) -> bool:
        """Whether it is a row of ours."""
        return self.tool == US


def rows() -> tuple[Row, ...]:
    """Return every row, ours first."""
    return (*_ours(), *_onnxruntime(), *_nncf(), *_torch(), *_modelopt())


def _ours() -> Iterator[Row]:
    """One file a runtime, since each target has its own; the hard settings for the default."""
    where = "benchmarks.studies.ours"
    for name in OURS:
        for runtime, target in (("onnxruntime", "ort-cpu"), ("openvino", "openvino")):
            options: dict[str, Any] = {"row": name, "target": target}
            if (name, target) != (FREE, "openvino"):  # its default
                yield Row(US, name, where, options, (runtime,), quick=name == DEFAULT)
            if name == DEFAULT:
                tensor = options | {"per_channel": False}
                yield Row(US, name, where, options, (runtime,), FEW)
                yield Row(US, name, where, tensor, (runtime,), PER_TENSOR)
    for target, runtime, setting in (
        ("arm", "onnxruntime", S8S8), ("tensorrt", SIMULATED, TENSORRT)
    ):  # fmt: skip
        options = {"row": DEFAULT, "target": target}
        yield Row(US, f"{DEFAULT}, for {target}", where, options, (runtime,), setting)


def _onnxruntime() -> Iterator[Row]:
    tool, where = "onnxruntime", "benchmarks.peers.onnxruntime_static"
    for method in onnxruntime_static.METHODS:
        # Entropy gives the ranges of MinMax; Distribution is meant for float8.
        seeds = 1 if method in ("Entropy", "Distribution") else 0
        quick = method in ("MinMax", "Percentile")
        yield Row(tool, method, where, {"method": method}, seeds=seeds, quick=quick)
    for method in ("MinMax", "Percentile"):
        yield Row(tool, method, where, {"method": method}, setting=FEW)
        options: dict[str, Any] = {"method": method, "per_channel": False}
        yield Row(tool, method, where, options, setting=PER_TENSOR)
        options = {"method": method, "activations": "s8"}
        yield Row(tool, method, where, options, ("onnxruntime",), S8S8)
        options = {"method": method, "activations": "s8-symmetric"}
        yield Row(tool, method, where, options, ("onnxruntime", SIMULATED), TENSORRT)


def _nncf() -> Iterator[Row]:
    """Presets, batches and bias corrections; it has no setting for S8S8 on the CPU."""
    # Many seeds for the settings that do best; one for those that show what a setting costs.
    for batch, preset, correction, seeds in (
        (1, "performance", "fast", 1),
        (1, "mixed", "fast", 1),
        (50, "performance", "fast", 1),
        (50, "performance", "accurate", 1),
        (50, "performance", "none", 0),
        (50, "mixed", "none", 0),
    ):
        options: dict[str, Any] = {"preset": preset, "batch": batch, "correction": correction}
        method = f"{preset}, batch {batch}, {correction} correction"
        yield from _nncf_pair(method, options, seeds=seeds)
    control: dict[str, Any] = {"batch": 50, "correction": "none", "max_drop": 0.005}
    yield from _nncf_pair("accuracy control, 99.5 % agreement", control, seeds=1)
    for batch in (1, 16):
        options = {"batch": batch, "correction": "none"}
        yield from _nncf_pair(f"performance, batch {batch}, none correction", options, FEW)
    options = {"batch": 50, "correction": "none", "per_channel": False}
    yield from _nncf_pair("performance, batch 50, none correction", options, PER_TENSOR)


def _nncf_pair(
    method: str, options: dict[str, Any], setting: str = PLAIN, seeds: int = 0
) -> Iterator[Row]:
    """The ONNX file, and the OpenVINO model in OpenVINO's own API."""
    where = "benchmarks.peers.nncf_static"
    # Without a correction it is the better one; the quick run takes one of each.
    quick = method == "performance, batch 50, none correction" and setting == PLAIN
    rest: dict[str, Any] = {"seeds": seeds, "quick": quick, "whole": "max_drop" not in options}
    yield Row("nncf (onnx)", method, where, options, _ONNX, setting, **rest)
    yield Row("nncf (openvino)", method, where, options, ("openvino",), setting, ".xml", **rest)


def _torch() -> Iterator[Row]:
    where, fx = "benchmarks.peers.torch_static", "torch FX"
    native = ("torch",)
    x86 = {"backend": "x86"}
    yield Row(fx, "static, x86", where, x86, native, PLAIN, ".pt", quick=True)
    yield Row(fx, "static, fbgemm", where, {"backend": "fbgemm"}, native, PLAIN, ".pt", seeds=1)
    dynamic = {"method": "dynamic"}
    # No convolution is quantized: nearly FP32.
    yield Row(
        fx, "dynamic, Linear only", where, dynamic, native, PLAIN, ".pt", seeds=1, whole=False
    )
    yield Row(fx, "static, x86", where, x86, native, FEW, ".pt")
    yield Row(fx, "static, x86", where, x86 | {"per_channel": False}, native, PER_TENSOR, ".pt")
    where, simulated = "benchmarks.peers.torchao_static", ("torch, simulated",)
    tool = "torchao PT2E"
    name = "X86InductorQuantizer"  # what convolutions give stays in float
    yield Row(tool, name, where, {}, simulated, PLAIN, ".pt2", quick=True, free=True)
    yield Row(tool, name, where, {}, simulated, FEW, ".pt2", free=True)


def _modelopt() -> Iterator[Row]:
    """S8S8 for TensorRT is all that it makes; there it stands in its own setting too."""
    tool, where, own = "modelopt", "benchmarks.peers.modelopt_static", "modelopt"
    for method in ("max", "entropy"):
        quick = method == "max"
        for setting in (PLAIN, FEW):
            yield Row(
                tool, method, where, {"method": method}, (*_ONNX, SIMULATED), setting,
                seeds=0 if quick else 1,
                quick=quick and setting == PLAIN, environment=own,
                also=(S8S8, TENSORRT) if setting == PLAIN else (),
            )  # fmt: skip
