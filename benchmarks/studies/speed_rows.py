"""Which ways `peers_speed` times: every tool, the file that it runs, and what its user may choose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.openvino_native import NativeOpenVino
from benchmarks.peers.setting import Setting, Space
from benchmarks.peers.streams import Streams
from benchmarks.peers.torch_modes import MODES, open_module, open_program, open_script
from benchmarks.studies.ours import DEFAULT
from deploy_tools.runtimes import RuntimeConfig, Session, open_session

if TYPE_CHECKING:
    from torch import nn

US = "deploy-tools"
BASELINE = "onnxruntime FP32"
FP32, MODULE = "fp32", "module"
"""Names of what is there before any tool works: the ONNX file and the torch module behind it."""
# Inductor compiles each batch size anew, and its compiled calls share one thread pool: no streams,
# and fewer sizes than the other tools are tried with.
_COMPILED = Space(streams=False, divisors=(8, 1, 4, 16))
_FIXED = Space(fixed=True)
_ONE_STREAM = Space(streams=False, fixed=True)


@dataclass(frozen=True)
class Made:
    """A file that a tool makes from the FP32 model. adapter: as in `benchmarks.peers.measure`.

    target: set where a uint8 input is put in front of it: what the file was quantized for.
    """

    name: str
    adapter: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    suffix: str = ".onnx"
    of: str = ""
    target: str = ""


@dataclass(frozen=True)
class Source:
    """What a row opens: the file that it names, and the torch module."""

    path: Path
    module: Callable[[], nn.Module]


Open = Callable[[Source, Setting], Session]


@dataclass(frozen=True)
class Row:
    """A way to run the model. tool, way: its name. kind: "fp32", "bf16" or "int8".

    file: a name in `FILES`, FP32 or MODULE. pixels: takes uint8 (N, H, W, C) and normalizes inside
    the graph. quick: part of --quick.
    """

    tool: str
    way: str
    kind: str
    file: str
    open: Open
    space: Space = field(default_factory=Space)
    pixels: bool = False
    quick: bool = False

    @property
    def name(self) -> str:
        """Tool and way."""
        return f"{self.tool} {self.way}"

    @property
    def ours(self) -> bool:
        """Whether it is a row of ours."""
        return self.tool == US


def _files() -> Iterator[Made]:
    ours, ort = "benchmarks.studies.ours", "benchmarks.peers.onnxruntime_static"
    for target in ("ort-cpu", "openvino"):
        options = {"row": DEFAULT, "target": target}
        yield Made(f"ours-{target}", ours, options)
        yield Made(f"ours-{target}-uint8", of=f"ours-{target}", target=target)
    yield Made("fp32-uint8", of=FP32, target="openvino")
    # What quantize_static does without options, and what its documentation advises for x86.
    yield Made("ort-default", ort, {"activations": "s8", "per_channel": False})
    yield Made("ort-u8s8", ort, {"activations": "u8", "per_channel": True})
    yield Made("nncf", "benchmarks.peers.nncf_static", suffix=".xml")
    yield Made("fx", "benchmarks.peers.torch_static", suffix=".pt")
    yield Made("pt2e", "benchmarks.peers.torchao_static", suffix=".pt2")


FILES = {file.name: file for file in _files()}


def rows() -> tuple[Row, ...]:
    """Return every row, the baseline first and ours last."""
    return (*_onnxruntime(), *_openvino(), *_torch(), *_ours())


def _onnxruntime() -> Iterator[Row]:
    tool, cpu = "onnxruntime", onnxruntime
    yield Row(tool, "FP32", "fp32", FP32, cpu, quick=True)
    yield Row(tool, "INT8, quantize_static's defaults", "int8", "ort-default", cpu)
    yield Row(tool, "INT8, U8S8 per channel", "int8", "ort-u8s8", cpu, quick=True)


def _openvino() -> Iterator[Row]:
    for hint, space in (("LATENCY", _ONE_STREAM), ("THROUGHPUT", _FIXED)):
        yield Row(
            "OpenVINO", f"INT8 by NNCF, {hint}", "int8", "nncf", native(hint, True), space,
            quick=True,
        )  # fmt: skip
        # Its default where the CPU has bf16; the row says in what it ran.
        yield Row("OpenVINO", f"FP32 file, {hint}", "bf16", FP32, native(hint, False), space)


def _torch() -> Iterator[Row]:
    for mode, settings in MODES.items():
        space = _COMPILED if settings.compiled else Space()
        yield Row(
            "torch",
            mode,
            settings.precision,
            MODULE,
            torch_mode(mode),
            space,
            quick=mode == "eager",
        )
    yield Row("torch", "INT8, FX x86", "int8", "fx", torch_script, quick=True)
    yield Row("torch", "INT8, PT2E and Inductor", "int8", "pt2e", torch_program, _COMPILED)


def _ours() -> Iterator[Row]:
    for target, runtime in (("ort-cpu", "onnxruntime"), ("openvino", "openvino")):
        name, file = f"int8-static-{target.removesuffix('-cpu')}", f"ours-{target}"
        yield Row(US, name, "int8", file, product(runtime), _FIXED, quick=True)
        yield Row(
            US, f"{name}, uint8 input", "int8", f"{file}-uint8", product(runtime), _FIXED,
            pixels=True, quick=True,
        )  # fmt: skip
    bf16 = product("openvino", "bf16")
    yield Row(US, "bf16-openvino", "bf16", FP32, bf16, _FIXED, quick=True)
    yield Row(US, "bf16-openvino, uint8 input", "bf16", "fp32-uint8", bf16, _FIXED, pixels=True)


def product(runtime: str, precision: str = "") -> Open:
    """Open a file through this package's runtimes; their streams cut a query into chunks."""

    def opened(source: Source, setting: Setting) -> Session:
        threads, streams = setting.threads * setting.streams, setting.streams
        config = RuntimeConfig(
            runtime, threads, precision, streams=streams, part=setting.chunk if streams > 1 else 0,
            fixed_batch=setting.chunk if setting.fixed else 0,
        )  # fmt: skip
        session = open_session(source.path, config)
        return session if streams > 1 else Streams([session], setting.chunk)

    return opened


def onnxruntime(source: Source, setting: Setting) -> Session:
    """Open a file as users of onnxruntime do: a session a stream, and one for all where a stream
    is one thread, since its calls run on the thread that makes them."""
    config = RuntimeConfig("onnxruntime", setting.threads)
    if setting.threads == 1:
        return Streams([open_session(source.path, config)] * setting.streams, setting.chunk)
    sessions = [open_session(source.path, config) for _ in range(setting.streams)]
    return Streams(sessions, setting.chunk)


def native(hint: str, quantized: bool) -> Open:
    """Open a file in OpenVINO's own API."""
    return lambda source, setting: NativeOpenVino(source.path, hint, setting, quantized)


def torch_mode(mode: str) -> Open:
    """Open the torch module in one of torch's modes; streams share one copy's weights."""

    def opened(source: Source, setting: Setting) -> Session:
        session = open_module(source.module(), mode, setting.threads)
        return Streams([session] * setting.streams, setting.chunk)

    return opened


def torch_script(source: Source, setting: Setting) -> Session:
    """Open a quantized TorchScript file."""
    return Streams([open_script(source.path, setting.threads)] * setting.streams, setting.chunk)


def torch_program(source: Source, setting: Setting) -> Session:
    """Open a quantized program of torch.export through Inductor."""
    return Streams([open_program(source.path, setting.threads)], setting.chunk)
