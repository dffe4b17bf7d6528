"""The calls into TensorRT: ONNX file in, engine bytes and log out.

One path for 10.12 and newer, 11.x and TensorRT for RTX. Precision comes from the ONNX file
alone: the network is strongly typed. Every name used here exists in all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy_tools.engines.interrupt import Cancel, run_cancellable
from deploy_tools.engines.log import BuildLog
from deploy_tools.engines.shapes import Shapes
from deploy_tools.engines.timing_cache import bytes_of_timing_cache, load_timing_cache
from deploy_tools.errors import MissingDependencyError, UserError
from deploy_tools.runtimes.flavours import Flavour
from deploy_tools.runtimes.trt_log import listening, logger_of

Progress = Callable[[str, int, int], None]

# The builder calls back into Python while it holds locks of its own, so two at a time could wait
# for each other; it uses every core anyway.
_ONE_AT_A_TIME = threading.Lock()
_SHOWN = 3
"""How many of TensorRT's reasons a message quotes."""


@dataclass(frozen=True)
class BuildOptions:
    """What the builder is told beside the network; see `deploy_tools.engines.build.BuildConfig`."""

    workspace_bytes: int | None = None
    timing_cache: Path | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    tf32: bool = False


@dataclass(frozen=True)
class Built:
    """The bytes of an engine, the names of its tensors and the log of its build.

    timing_cache: what goes into the file of that name; b"" where none was asked for.
    """

    data: bytes
    input_name: str
    output_names: tuple[str, ...]
    log: BuildLog
    timing_cache: bytes = b""


def build_engine(
    flavour: Flavour,
    model: Path,
    shapes: Shapes,
    options: BuildOptions,
    progress: Progress | None = None,
) -> Built:
    """Parse `model` and build it; the model has one input.

    Raises UserError with TensorRT's own reason, and the node's name where it tells one;
    MissingDependencyError where this TensorRT cannot build on this machine; KeyboardInterrupt
    on Ctrl-C, after the builder has ended.
    """

    def build(cancel: Cancel) -> Built:
        with listening(flavour) as lines:  # in the thread that calls TensorRT
            return _build(flavour, model, shapes, options, progress, cancel, BuildLog(lines))

    with _ONE_AT_A_TIME:
        return run_cancellable(build)


def _build(
    flavour: Flavour,
    model: Path,
    shapes: Shapes,
    options: BuildOptions,
    progress: Progress | None,
    cancel: Cancel,
    log: BuildLog,
) -> Built:
    trt = flavour.module
    builder = _open_builder(flavour, log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger_of(flavour))
    if not parser.parse_from_file(str(model)):
        raise _parse_error(flavour, model, parser, log)
    config = _configure(flavour, builder, options, log)
    tensor = network.get_input(0)
    profile = builder.create_optimization_profile()
    profile.set_shape(tensor.name, shapes.min, shapes.opt, shapes.max)
    if config.add_optimization_profile(profile) < 0:
        raise _build_error(flavour, model, log, "the optimization profile is refused")
    monitor = _open_monitor(flavour, progress, cancel)  # lives as long as the config
    config.progress_monitor = monitor
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise _build_error(flavour, model, log, "it gave no reason")
    times = b"" if options.timing_cache is None else bytes_of_timing_cache(config)
    outputs = tuple(network.get_output(place).name for place in range(network.num_outputs))
    built = Built(bytes(serialized), tensor.name, outputs, log, times)
    # The parser refers to the network and both to the builder: they must go in this order.
    del serialized, monitor, profile, tensor, config, parser, network, builder
    return built


def _open_builder(flavour: Flavour, log: BuildLog) -> Any:
    try:
        return flavour.module.Builder(logger_of(flavour))
    except Exception as error:  # pybind11 raises TypeError for a null pointer
        from deploy_tools.runtimes.gpu import why_no_gpu

        reason = why_no_gpu() or "; ".join(log.errors()[:_SHOWN]) or str(error)
        raise MissingDependencyError(
            f"{flavour.title} cannot build on this machine: {reason.rstrip('.')}.",
            "TensorRT builds only where it has a GPU. TensorRT for RTX builds without one: "
            "--flavour tensorrt-rtx (pip install 'deploy-tools[tensorrt-rtx]').",
        ) from error


def _configure(flavour: Flavour, builder: Any, options: BuildOptions, log: BuildLog) -> Any:
    trt = flavour.module
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # It is on by default, and an FP32 baseline in TF32 would not be one.
    if options.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.timing_cache is not None:
        load_timing_cache(config, options.timing_cache, log)
    return config


def _open_monitor(flavour: Flavour, progress: Progress | None, cancel: Cancel) -> Any:
    """Return a progress monitor that reports the phases and ends the build when asked to."""
    trt = flavour.module

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """No error may leave these methods: there is C++ above them."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            self._report(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._report(phase_name, step + 1)
            return not cancel.is_asked

        def phase_finish(self, phase_name: str) -> None:
            self._report(phase_name, self._steps.get(phase_name, 0))

        def _report(self, phase_name: str, done: int) -> None:
            if progress is not None and not cancel.is_asked:
                try:
                    progress(f"building, {phase_name}", done, self._steps.get(phase_name, 0))
                except BaseException as error:
                    cancel(error)

    return Monitor()


def _parse_error(flavour: Flavour, model: Path, parser: Any, log: BuildLog) -> UserError:
    errors = [parser.get_error(place) for place in range(parser.num_errors)]
    reasons = [_reason(flavour, error) for error in errors] or log.errors()
    return UserError(
        f"{model} cannot be read by {flavour.title}: {_joined(reasons).rstrip('.')}.",
        "Change these nodes, or export the model without them.",
    )


def _reason(flavour: Flavour, error: Any) -> str:
    name, operator = error.node_name(), error.node_operator()
    node = f'node "{name or error.node()}" ({operator}): ' if operator else ""
    desc = " ".join(error.desc().split()).rstrip(".")
    # Its checks quote their own condition; one that can never hold says "false".
    if desc in ("", "false"):
        desc = f"the operator {operator} is not supported"
    return f"{node}{desc} [{error.code().name}]"


def _build_error(flavour: Flavour, model: Path, log: BuildLog, otherwise: str) -> UserError:
    reason = _joined(log.errors()) or otherwise
    hint = "Give more with --workspace." if "workspace" in reason else ""
    return UserError(
        f"{flavour.title} cannot build an engine from {model}: {reason.rstrip('.')}.", hint
    )


def _joined(reasons: list[str]) -> str:
    unique = list(dict.fromkeys(reason for reason in reasons if reason))
    more = f"; and {len(unique) - _SHOWN} more" if len(unique) > _SHOWN else ""
    return "; ".join(unique[:_SHOWN]) + more
