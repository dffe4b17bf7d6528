"""What this machine can do at most: INT8 multiply-adds and copied bytes a second, measured.

INT8: layers with much arithmetic and little else, in every runtime at hand: chains of equal
convolutions, 3x3 and 1x1, as Q/DQ files in OpenVINO and in onnxruntime, and torch._int_mm, which
is oneDNN's product of int8 matrices. The peak is the best of them; a processor's paper figure
is higher. Bandwidth: a copy of arrays too large for the caches, by numpy on all cores and by torch;
bytes are counted as STREAM counts them (McCalpin 1995): those read and those written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.end_to_end import rows_of
from benchmarks.environment import limits
from benchmarks.peers.openvino_native import NativeOpenVino
from benchmarks.peers.sessions import FunctionSession
from benchmarks.peers.setting import Setting
from benchmarks.peers.torch_modes import use_threads
from benchmarks.peers.worker import reason_of
from benchmarks.speed import MakeBatch, SpeedConfig, SpeedRun, measure_speed
from benchmarks.statistics import Interval
from benchmarks.studies.base import Results
from deploy_tools.errors import MissingDependencyError, require
from deploy_tools.runtimes import RuntimeConfig, Session, open_session
from deploy_tools.runtimes.base import usable_cores

_BATCH, _LAYERS = 8, 24
_SHAPES = {"3x3 convolutions": (256, 28, 3), "1x1 convolutions": (1024, 14, 1)}
"""Channels in and out, pixels a side, kernel."""
_MATRIX = 2048
_UNIFORM_STD = 73.3  # of whole numbers from -127 to 127
_LEAST_COPY, _MOST_COPY = 1 << 28, 1 << 31
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True)
class Load:
    """A measured load. work: multiply-adds or bytes of one call. make: of its inputs."""

    name: str
    work: float
    open: Callable[[], Session]
    make: MakeBatch = rows_of


@dataclass(frozen=True)
class Peak:
    """The best of several loads, a second, with its interval, and by which load."""

    value: Interval
    by: str


def int8_peak(results: Results, config: SpeedConfig) -> Peak:
    """Measure INT8 multiply-adds a second; one row a load."""
    with tempfile.TemporaryDirectory() as folder:
        loads = [*_convolutions(Path(folder)), _matrices()]
        return _best(results, loads, config, "INT8 multiply-adds a second")


def copy_bandwidth(results: Results, config: SpeedConfig) -> Peak:
    """Measure copied bytes a second, read and written; one row a load."""
    size = copy_size()
    source, target = (np.ones(size, np.uint8) for _ in range(2))
    work, shown = 2.0 * size, f"{size / 1e6:.0f} MB"
    loads = [
        Load(f"numpy copy of {shown}, all cores", work, partial(_NumpyCopy, source, target)),
        Load(f"torch copy of {shown}", work, partial(_torch_copy, source, target)),
    ]
    return _best(results, loads, config, "bytes a second")


def copy_size(caches: Path = _CACHES) -> int:
    """Return the bytes of one array: four times the last cache, as STREAM asks for, within bounds.

    At most 2 GiB and an eighth of the memory at hand; at least 256 MiB.
    """
    sizes = [_bytes(path.read_text("ascii")) for path in caches.glob("index*/size")]
    available = _available()
    most = min(_MOST_COPY, available // 8) if available else _MOST_COPY
    return max(min(4 * max(sizes, default=0), most), _LEAST_COPY)


def _best(results: Results, loads: list[Load], config: SpeedConfig, unit: str) -> Peak:
    """Time loads interleaved; the best is the one with the highest median."""
    sessions: dict[str, Session] = {}
    try:
        for load in loads:
            try:
                sessions[load.name] = load.open()
                sessions[load.name].run(load.make(_BATCH))
            except Exception as error:  # every runtime has its own classes
                sessions.pop(load.name, None)
                results.row(load=load.name, status="did not run", reason=reason_of(error))
        if not sessions:
            raise MissingDependencyError(f"nothing here measures {unit}.")
        makers = {load.name: load.make for load in loads}
        runs = measure_speed(sessions, makers, next(iter(sessions)), config)
    finally:
        for session in sessions.values():
            session.close()
    work = {load.name: load.work for load in loads}
    found = {run.variant: _scaled(run, work[run.variant]) for run in runs}
    for name, rate in found.items():
        results.row(load=name, unit=unit, value=rate.estimate, value_ci95=rate.ends())
    best = max(found, key=lambda name: found[name].estimate)
    return Peak(found[best], best)


def _scaled(run: SpeedRun, work: float) -> Interval:
    """Work a second, from calls of `_BATCH` rows a second."""
    rate = run.images_per_s
    return Interval(*(value * work / run.batch for value in (rate.estimate, rate.low, rate.high)))


def speed_config(quick: bool) -> SpeedConfig:
    """Return how long the loads are timed."""
    rounds, seconds = (8, 0.1) if quick else (20, 0.3)
    return SpeedConfig(
        ("offline",), batch=_BATCH, warmup=2, settle=1, rounds=rounds, seconds_per_round=seconds
    )


def _convolutions(folder: Path) -> Iterator[Load]:
    for name, (channels, side, kernel) in _SHAPES.items():
        path = folder / f"{kernel}.onnx"
        onnx.save(convolution_chain(channels, side, kernel, _LAYERS), str(path))
        work = float(_BATCH * _LAYERS * side * side * channels * channels * kernel * kernel)
        make = partial(_pixels, channels, side)
        setting = Setting(threads=usable_cores(), chunk=_BATCH)
        yield Load(f"{name}, OpenVINO", work, partial(NativeOpenVino, path, "LATENCY", setting, True), make)  # fmt: skip
        yield Load(f"{name}, onnxruntime", work, partial(open_session, path, RuntimeConfig()), make)


def convolution_chain(channels: int, side: int, kernel: int, layers: int) -> onnx.ModelProto:
    """Return `layers` equal U8S8 convolutions in a row, each between Quantize and Dequantize."""
    generator = np.random.default_rng(0)
    tensors: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, value: NDArray[Any]) -> str:
        tensors.append(numpy_helper.from_array(value, name))
        return name

    def quantized(name: str) -> str:
        """Through uint8 with one scale, as between all layers."""
        made = f"{name}/q", f"{name}/dq"
        nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [made[0]]))
        nodes.append(helper.make_node("DequantizeLinear", [made[0], "scale", "zero"], [made[1]]))
        return made[1]

    constant("scale", np.array(0.02, np.float32))
    constant("zero", np.array(0, np.uint8))
    # He's initialization, so that values neither fade nor overflow from layer to layer.
    spread = (2 / (channels * kernel * kernel)) ** 0.5 / _UNIFORM_STD
    constant("weight_scale", np.full(channels, spread, np.float32))
    constant("weight_zero", np.zeros(channels, np.int8))
    last = quantized("input")
    for layer in range(layers):
        shape = (channels, channels, kernel, kernel)
        weight = constant(f"w{layer}", generator.integers(-127, 128, shape).astype(np.int8))
        nodes.append(
            helper.make_node(
                "DequantizeLinear",
                [weight, "weight_scale", "weight_zero"],
                [f"w{layer}/dq"],
                axis=0,
            )
        )
        nodes.append(
            helper.make_node(
                "Conv", [last, f"w{layer}/dq"], [f"conv{layer}"],
                pads=[kernel // 2] * 4, kernel_shape=[kernel, kernel],
            )
        )  # fmt: skip
        nodes.append(helper.make_node("Relu", [f"conv{layer}"], [f"relu{layer}"]))
        last = quantized(f"relu{layer}")
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["output"]))
    graph = helper.make_graph(
        nodes,
        "peak",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", channels, side, side])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", channels])],
        tensors,
    )
    opsets = [helper.make_opsetid("", 20)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return model


def _pixels(channels: int, side: int, count: int) -> NDArray[np.float32]:
    generator = np.random.default_rng(1)
    return generator.random((count, channels, side, side), np.float32)


def _matrices() -> Load:
    return Load(
        f"torch._int_mm, {_MATRIX} x {_MATRIX}", float(_MATRIX**3), partial(_int_mm, _MATRIX)
    )


def _int_mm(side: int) -> Session:
    torch: Any = require("torch", "torch", "oneDNN's INT8 product")
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.randint(-128, 128, (side, side), dtype=torch.int8, generator=generator)
        for _ in range(2)
    )

    def call(rows: NDArray[Any]) -> NDArray[Any]:
        use_threads(usable_cores())
        torch._int_mm(a, b)
        return rows

    return FunctionSession("torch", "int8", call)


class _NumpyCopy(FunctionSession):
    """Each core copies its part; numpy leaves Python's lock while it copies."""

    def __init__(self, source: NDArray[np.uint8], target: NDArray[np.uint8]) -> None:
        super().__init__("numpy", "uint8", self._copy)
        cores = usable_cores()
        self._pool = ThreadPoolExecutor(cores)
        self._parts = list(
            zip(np.array_split(target, cores), np.array_split(source, cores), strict=True)
        )

    def _copy(self, rows: NDArray[Any]) -> NDArray[Any]:
        list(self._pool.map(_copy_part, self._parts))
        return rows

    def close(self) -> None:
        self._pool.shutdown()
        self._parts = []
        super().close()


def _copy_part(part: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    np.copyto(*part)


def _torch_copy(source: NDArray[np.uint8], target: NDArray[np.uint8]) -> Session:
    torch: Any = require("torch", "torch", "torch's copy")
    to, of = torch.from_numpy(target), torch.from_numpy(source)

    def call(rows: NDArray[Any]) -> NDArray[Any]:
        use_threads(usable_cores())
        to.copy_(of)
        return rows

    return FunctionSession("torch", "uint8", call)


def _bytes(text: str) -> int:
    """Read Linux's "2048K"."""
    text = text.strip()
    factors: Mapping[str, int] = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    if text and text[-1] in factors:
        return int(text[:-1]) * factors[text[-1]]
    return int(text or 0)


def _available() -> int:
    """Return the bytes of memory at hand, 0 where nothing tells: of the machine and the cgroup."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        lines = []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    limit = limits()["memory_bytes"]
    return min([*found, *([] if limit is None else [int(limit)])], default=0)
