"""TensorRT engines, of TensorRT 10.12 and later, 11 and TensorRT for RTX.

An engine is checked against this machine by its sidecar before TensorRT sees it. What needs a
GPU here has not been run where this was written; that every TensorRT name exists in the bindings
10.16, 11.4 and RTX 1.7 is tested, and `make gpu-test` runs the rest on a machine with a GPU.

Sources: TensorRT documentation, "Python API" (execute_async_v3, named tensors) and "CUDA
graphs" (one context for each graph); TensorRT-RTX documentation, "Working with RTX CUDA Graphs"
and "Working with Dynamic Shapes".
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy_tools.engine_files import Sidecar, read_sidecar, require_match
from deploy_tools.errors import ArtifactError, MissingDependencyError, UserError
from deploy_tools.runtimes.base import RuntimeConfig
from deploy_tools.runtimes.device_memory import DeviceMemory, memory_named
from deploy_tools.runtimes.engine_runner import EngineIO, EngineRunner
from deploy_tools.runtimes.flavours import Flavour, find_flavour
from deploy_tools.runtimes.gpu import Gpu, find_gpu, gpu_state, why_no_gpu
from deploy_tools.runtimes.trt_log import ERRORS, Line, listening, logger_of


@dataclass(frozen=True, eq=False)
class GpuTimes:
    """The raw timings of one batch size on the GPU's own clock.

    compute_ms, with_copies_ms: float64 (repeats,), see `engine_runner.EventTimes`. before,
    after: clocks, temperature and power as `gpu_state` gives them; {} where they were not read.
    """

    batch: int
    warmup: int
    compute_ms: NDArray[np.float64]
    with_copies_ms: NDArray[np.float64]
    before: dict[str, Any]
    after: dict[str, Any]


class TensorRtSession:
    """An engine on the GPU, behind the interface of every runtime.

    provider: the GPU's name. threads, streams: one of each. precision: the sidecar's.
    smallest_batch, largest_batch: of the engine's profile. cuda_graph: whether calls are
    launched as CUDA graphs.
    """

    threads = 1
    streams = 1

    def __init__(
        self,
        runner: EngineRunner,
        sidecar: Sidecar,
        gpu: Gpu,
        kept: ExitStack,
        errors: _Errors,
        cuda_graph: bool = False,
    ) -> None:
        self.runtime = sidecar.flavour
        self.provider = gpu.name
        self.precision = sidecar.precision
        self.input_name = sidecar.input_name
        self.output_names = sidecar.output_names
        self.smallest_batch = sidecar.profile["min"][0]
        self.largest_batch = sidecar.profile["max"][0]
        self.cuda_graph = cuda_graph
        self._runner = runner
        self._errors = errors
        # One that is forgotten gives its memory back too: when it goes, or when Python ends.
        self._close = weakref.finalize(self, _close, kept, errors)

    def run(self, inputs: NDArray[Any]) -> tuple[NDArray[np.float32], ...]:
        """Run one batch; UserError for one that the engine's profile does not take.

        A batch below the profile's smallest is filled up and its outputs are cut to size, which
        takes as long as the smallest batch does: see `require_batch` before timing.
        """
        with self._errors.listening():
            return self._runner.run(inputs)

    def require_batch(self, batch: int) -> None:
        """Refuse a batch size that cannot be timed, as it lies outside of the profile."""
        self._runner.require_batch(batch)

    def time_batches(
        self,
        inputs: NDArray[Any],
        repeats: int = 100,
        warmup: int = 10,
        read_state: bool = True,
    ) -> GpuTimes:
        """Time one batch again and again with CUDA events, after `warmup` untimed calls.

        read_state: ask nvidia-smi before and after, which takes a moment in which the GPU idles.
        """
        before = gpu_state() if read_state else {}
        with self._errors.listening():
            times = self._runner.time_calls(inputs, repeats, warmup)
        after = gpu_state() if read_state else {}
        return GpuTimes(len(inputs), warmup, times.compute_ms, times.with_copies_ms, before, after)

    def close(self) -> None:
        """Free buffers, contexts, engine and runtime, in this order; may be called twice."""
        self._close()


def _close(kept: ExitStack, errors: _Errors) -> None:
    with errors.listening():
        kept.close()


def open_session(model: Path | bytes, config: RuntimeConfig) -> TensorRtSession:
    """Load an engine whose sidecar fits this machine.

    Raises UserError for what is not an engine or cannot be asked of one, ArtifactError where
    the sidecar is missing or names another TensorRT or GPU, and MissingDependencyError where
    TensorRT or a GPU that it runs on is missing.
    """
    engine = _engine_file(model)
    sidecar = read_sidecar(engine)
    if sidecar.flavour != config.runtime:
        version = sidecar.tensorrt_version
        require_match(engine, sidecar, flavour=config.runtime, tensorrt_version=version)
    _require_possible(engine, sidecar, config)
    with ExitStack() as kept:
        loaded = _load(engine, sidecar, kept, config.memory)
        io = EngineIO(
            str(engine),
            sidecar.input_name,
            sidecar.output_names,
            tuple(sidecar.profile["min"]),
            tuple(sidecar.profile["max"]),
            loaded.input_dtype(engine, sidecar.input_name),
        )
        loaded.require_float_outputs(io)
        # TensorRT for RTX captures graphs itself, as it knows when its kernels are compiled.
        capture = config.cuda_graph and not loaded.flavour.is_rtx
        with loaded.errors.listening():
            make = loaded.new_context(config.cuda_graph)
            runner = EngineRunner(loaded.memory, make, io, capture, loaded.errors.take)
        kept.callback(runner.close)
        return TensorRtSession(
            runner, sidecar, loaded.gpu, kept.pop_all(), loaded.errors, config.cuda_graph
        )


def inspector_json(engine: Path) -> str:
    """Return what TensorRT's engine inspector says about an engine, as its JSON text.

    Raises what `open_session` raises: the inspector needs the engine loaded, thus a GPU.
    """
    sidecar = read_sidecar(_engine_file(engine))
    with ExitStack() as kept:
        loaded = _load(engine, sidecar, kept)
        trt = loaded.flavour.module
        with loaded.memory.active():
            inspector = loaded.engine.create_engine_inspector()
            return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _engine_file(model: Path | bytes) -> Path:
    if isinstance(model, bytes):
        raise UserError("an engine is opened from its file, beside which its sidecar lies.")
    if model.suffix == ".onnx":
        raise UserError(
            f"{model} is an ONNX file; TensorRT runs engines.",
            f"Build one first: deploy-tools build {model} -o DIR",
        )
    return model


def _require_possible(engine: Path, sidecar: Sidecar, config: RuntimeConfig) -> None:
    """Refuse settings that were decided when the engine was built."""
    rest = sidecar.precision.split("+")[-1]
    if config.precision not in ("", rest):
        raise UserError(
            f"{engine} was built for {sidecar.precision} and cannot run in {config.precision}.",
            "The precision of an engine is that of its ONNX file.",
        )
    if not config.fusions:
        raise UserError(f"{engine} was fused when it was built, which cannot be undone.")


class _Errors:
    """TensorRT's error lines, kept for the message of the exception that follows."""

    def __init__(self, flavour: Flavour) -> None:
        self._flavour = flavour
        self._lines: list[Line] = []

    def listening(self) -> AbstractContextManager[list[Line]]:
        """Keep what TensorRT says to this thread; for every call into it."""
        return listening(self._flavour, self._lines, ERRORS)

    def take(self) -> str:
        """Return the lines since the last call, as one."""
        lines = self._lines[:]
        del self._lines[: len(lines)]
        return " ".join(text.strip() for _, text in lines)


@dataclass(eq=False)
class _Loaded:
    """A deserialized engine and what it lives on."""

    flavour: Flavour
    gpu: Gpu
    memory: DeviceMemory
    errors: _Errors
    runtime: Any
    engine: Any

    def input_dtype(self, engine: Path, name: str) -> np.dtype[Any]:
        """Return float32 or uint8 (pixels); refuse an engine that takes another type."""
        trt = self.flavour.module
        dtype = self.engine.get_tensor_dtype(name)
        if dtype == trt.uint8:
            return np.dtype(np.uint8)
        self._require_float(str(engine), name)
        return np.dtype(np.float32)

    def require_float_outputs(self, io: EngineIO) -> None:
        """Refuse an engine whose outputs are not float32."""
        for name in io.output_names:
            self._require_float(io.engine, name)

    def _require_float(self, engine: str, name: str) -> None:
        trt = self.flavour.module
        dtype = self.engine.get_tensor_dtype(name)
        if dtype == trt.float32:
            return
        half = dtype in (trt.float16, trt.bfloat16)
        raise UserError(
            f'{engine}: "{name}" is {dtype.name}; outputs must be float32, inputs float32 or '
            "uint8 pixels.",
            "Build it from a file of deploy-tools cast fp16, which keeps them."
            if half
            else "Export the model so that it takes normalized images or pixels and gives logits "
            "(no ArgMax or the like at its end), then build it again.",
        )

    def new_context(self, cuda_graph: bool) -> Callable[[], Any]:
        """Return what makes an execution context of this engine."""
        if not self.flavour.is_rtx:
            return lambda: self.engine.create_execution_context()
        trt = self.flavour.module
        settings = self.engine.create_runtime_config()
        # RTX compiles kernels for each shape. Its default does so behind the first calls, which
        # run slower ones meanwhile: eager makes a shape's first call slow and the rest alike.
        settings.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        strategies = trt.CudaGraphStrategy
        settings.cuda_graph_strategy = (
            strategies.WHOLE_GRAPH_CAPTURE if cuda_graph else strategies.DISABLED
        )
        return lambda: self.engine.create_execution_context(settings)

    def drop(self) -> None:
        """Let go of the engine before the runtime that made it, with the context current."""
        with self.memory.active():
            self.engine = None
            self.runtime = None


def _load(engine: Path, sidecar: Sidecar, kept: ExitStack, memory: str = "") -> _Loaded:
    """Deserialize an engine; `kept` gives everything back."""
    flavour = find_flavour(sidecar.flavour)
    here = {"flavour": flavour.name, "tensorrt_version": flavour.version}
    require_match(engine, sidecar, **here)  # what can be said without a GPU comes first
    gpu = _gpu_for(engine, flavour)
    here |= {"gpu_name": gpu.name, "compute_capability": gpu.compute_capability}
    require_match(engine, sidecar, **here)
    device = memory_named(memory)
    kept.callback(device.close)
    errors = _Errors(flavour)
    with device.active(), errors.listening():
        runtime = _new_runtime(engine, flavour, gpu, errors)
        # A version-compatible engine brings the code that runs it; TensorRT wants a yes to that.
        runtime.engine_host_code_allowed = sidecar.version_compatible
        loaded = runtime.deserialize_cuda_engine(engine.read_bytes())
    if loaded is None:
        raise ArtifactError(
            f"{engine} cannot be loaded by {flavour.title} on {gpu.name}: {errors.take()}",
            "Build it again here from its ONNX file: deploy-tools build MODEL.onnx -o DIR",
        )
    found = _Loaded(flavour, gpu, device, errors, runtime, loaded)
    kept.callback(found.drop)
    return found


def _new_runtime(engine: Path, flavour: Flavour, gpu: Gpu, errors: _Errors) -> Any:
    try:
        return flavour.module.Runtime(logger_of(flavour))
    except Exception as error:  # pybind11 raises TypeError for a null pointer
        reason = errors.take() or str(error)
        raise MissingDependencyError(
            f"{flavour.title} cannot run {engine} on {gpu.name}: {reason.rstrip('.')}.",
            "Its libraries or the driver may be too old or incomplete: see deploy-tools doctor.",
        ) from error


def _gpu_for(engine: Path, flavour: Flavour) -> Gpu:
    gpu = find_gpu()
    if gpu is None:
        raise MissingDependencyError(
            f"{engine} runs on a GPU, and there is none to use: {why_no_gpu()}.",
            "Run it on a machine with an NVIDIA GPU and its driver; its ONNX file runs here.",
        )
    if not flavour.runs_on(gpu.compute_capability):
        raise MissingDependencyError(
            f"{flavour.title} does not run on {gpu.name} (compute capability "
            f"{gpu.compute_capability}).",
            "See docs/tensorrt.md for what runs where.",
        )
    return gpu
