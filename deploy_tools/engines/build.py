"""Build a TensorRT engine from an ONNX file, with its sidecar."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx

from deploy_tools.artifacts import package_versions, sha256_of_file
from deploy_tools.engine_files import (
    NO_GPU,
    EngineLayer,
    Sidecar,
    require_writable,
    sidecar_path,
    write_engine,
)
from deploy_tools.engines.builder import BuildOptions, Progress, build_engine
from deploy_tools.engines.graph import LAYERS
from deploy_tools.engines.layers import layers_from_log, precision_by_node
from deploy_tools.engines.lint import require_buildable
from deploy_tools.engines.shapes import Dims, Shapes, require_fit, shapes_of_batch
from deploy_tools.engines.timing_cache import save_timing_cache
from deploy_tools.errors import UserError
from deploy_tools.onnx_files import known_input_spec, load_onnx, real_inputs
from deploy_tools.runtimes.flavours import Flavour, find_flavour
from deploy_tools.runtimes.gpu import Gpu, find_gpu

_RTX_LACKS = {
    "timing_cache": (
        "TensorRT for RTX has no timing cache",
        "It times nothing while it builds: kernels are chosen when the engine is loaded. "
        "Leave --timing-cache out.",
    ),
    "hardware_compatible": (
        "TensorRT for RTX has no hardware compatibility level",
        "Its engines run on every GPU it supports as they are. Leave --hardware-compatible out.",
    ),
    "version_compatible": (
        "TensorRT for RTX cannot build version-compatible engines",
        "Build the engine again for each version. Leave --version-compatible out.",
    ),
}


@dataclass(frozen=True)
class BuildConfig:
    """How to build an engine.

    flavour: a name in `deploy_tools.runtimes.flavours.NAMES`; "" takes what is installed.
    batch: "MIN:OPT:MAX" (or one size), for a model whose other dimensions are fixed.
    shapes: instead of `batch`, the whole shapes.
    workspace_mib: the most scratch memory a layer may take, MiB; None lets TensorRT decide.
    timing_cache: a file that is read where it exists and written afterwards.
    hardware_compatible: run on any GPU of compute capability 8.0 or newer, at some cost.
    version_compatible: run in later TensorRT releases too.
    tf32: let FP32 layers round their inputs to TF32; off for a strict FP32 baseline.
    """

    flavour: str = ""
    batch: str = "1:8:32"
    shapes: Shapes | None = None
    workspace_mib: int | None = None
    timing_cache: Path | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    tf32: bool = False


def engine_from_onnx(
    model: Path,
    path: Path,
    config: BuildConfig | None = None,
    progress: Progress | None = None,
) -> Sidecar:
    """Check `model`, build it, and write the engine to `path` and its sidecar beside it.

    Nothing is written where the build fails. Raises UserError where the model, a shape or an
    option does not fit, with TensorRT's own reason where it refuses; MissingDependencyError
    where the flavour is not installed or cannot build here; OutputError, before the build,
    where `path` cannot be written; KeyboardInterrupt on Ctrl-C. The one error after which the
    engine is there is TimingCacheError, for a timing cache that cannot be written behind it.
    """
    config = config or BuildConfig()
    flavour = find_flavour(config.flavour)
    gpu = find_gpu()
    _require_possible(config, flavour, gpu)
    cache = config.timing_cache
    require_writable(path, sidecar_path(path), *([cache] if cache else []))
    proto = load_onnx(model)
    require_buildable(proto, model, flavour)
    shapes = _shapes(proto, config)
    source = sha256_of_file(model)
    started = time.perf_counter()
    built = build_engine(flavour, model, shapes, _options(config), progress)
    seconds = time.perf_counter() - started
    layers = layers_from_log(built.log.texts())
    spec = known_input_spec(proto, model)
    sidecar = Sidecar(
        flavour=flavour.name,
        tensorrt_version=flavour.version,
        gpu=gpu.name if gpu else NO_GPU,
        compute_capability=gpu.compute_capability if gpu else "",
        onnx_sha256=source,
        engine_sha256=hashlib.sha256(built.data).hexdigest(),
        precision=precision_of(proto, layers),
        input_name=built.input_name,
        output_names=built.output_names,
        profile=shapes.profile(),
        tf32=config.tf32,
        hardware_compatible=config.hardware_compatible,
        version_compatible=config.version_compatible,
        workspace_bytes=_options(config).workspace_bytes,
        input_spec=spec.to_dict() if spec else None,
        layers=layers,
        build_seconds=round(seconds, 3),
        versions=package_versions() | {flavour.name: flavour.version},
    )
    write_engine(path, built.data, sidecar)
    if cache is not None and built.timing_cache:
        save_timing_cache(built.timing_cache, cache, path, sidecar)
    return sidecar


def weighted_nodes(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of the convolutions and matrix products, in graph order.

    A node without a name goes by the one that TensorRT's parser gives it.
    """
    return tuple(
        node.name or f"node_of_{node.output[0]}"
        for node in proto.graph.node
        if node.op_type in LAYERS
    )


def precision_of(proto: onnx.ModelProto, layers: Iterable[EngineLayer]) -> str:
    """Return in what the engine computes: "fp32", "fp16", "int8+fp16" or "int8+fp32".

    INT8 is said only where a convolution or matrix product of the engine takes INT8, whatever
    the ONNX file asks for; where TensorRT does not tell the types of any, the file counts. What
    the rest runs in follows from the file: the network is strongly typed.
    """
    found = set(precision_by_node(layers, weighted_nodes(proto)).values())
    rest = "fp16" if _holds_fp16(proto) else "fp32"
    asked = any(node.op_type == "QuantizeLinear" for node in proto.graph.node)
    if "int8" in found or (asked and found <= {"unknown"}):
        return f"int8+{rest}"
    return rest


def _holds_fp16(proto: onnx.ModelProto) -> bool:
    half = onnx.TensorProto.FLOAT16
    casts = (node for node in proto.graph.node if node.op_type == "Cast")
    return any(tensor.data_type == half for tensor in proto.graph.initializer) or any(
        attribute.i == half for node in casts for attribute in node.attribute
    )


def _require_possible(config: BuildConfig, flavour: Flavour, gpu: Gpu | None) -> None:
    """Refuse what the flavour or this GPU cannot do, instead of ignoring it."""
    if flavour.is_rtx:
        for option, (message, hint) in _RTX_LACKS.items():
            if getattr(config, option):
                raise UserError(f"{message}.", hint)
    if config.hardware_compatible and gpu and _capability(gpu) < (8, 0):
        raise UserError(
            f"{gpu.name} has compute capability {gpu.compute_capability}; hardware-compatible "
            "engines are built on 8.0 or newer."
        )
    if config.workspace_mib is not None and config.workspace_mib < 1:
        raise UserError(f"the workspace must be 1 MiB or more, got {config.workspace_mib}.")


def _capability(gpu: Gpu) -> tuple[int, ...]:
    return tuple(int(number) for number in gpu.compute_capability.split("."))


def _shapes(proto: onnx.ModelProto, config: BuildConfig) -> Shapes:
    value = real_inputs(proto)[0]
    dims: Dims = [dim.dim_value or None for dim in value.type.tensor_type.shape.dim]
    shapes = config.shapes or shapes_of_batch(config.batch, dims)
    require_fit(shapes, value.name, dims)
    return shapes


def _options(config: BuildConfig) -> BuildOptions:
    mib = config.workspace_mib
    return BuildOptions(
        workspace_bytes=None if mib is None else mib << 20,
        timing_cache=config.timing_cache,
        hardware_compatible=config.hardware_compatible,
        version_compatible=config.version_compatible,
        tf32=config.tf32,
    )
