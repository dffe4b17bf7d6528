"""deploy-tools doctor: what this machine can run."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict
from typing import Any

import click

from deploy_tools.cli.common import output_options, print_json
from deploy_tools.cli.expectation import expectation_of
from deploy_tools.errors import MissingDependencyError, require

_PARTS = {
    "onnxruntime": ("onnxruntime", "", "runs ONNX files"),
    "torch": ("torch", "torch", "fuse, export, train"),
    "torchvision": ("torchvision", "torch", "published weights, torchvision: architectures"),
    "timm": ("timm", "torch", "timm: architectures"),
    "onnxruntime-ep-openvino": ("onnxruntime_ep_openvino", "openvino", "the openvino runtime"),
    "matplotlib": ("matplotlib", "report", "plots in report.html"),
    "tensorrt": ("tensorrt", "tensorrt", "builds and runs engines on a GPU"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt-rtx", "builds engines without a GPU too"),
    "cuda-bindings": ("cuda.bindings", "tensorrt-rtx", "runs engines"),
    "pycuda": ("pycuda", "pycuda", "runs engines, in place of cuda-bindings"),
    "polygraphy": ("polygraphy", "polygraphy", "inspects and compares what build made"),
}


@click.command("doctor")
@output_options
def command(as_json: bool, quiet: bool, verbose: bool) -> None:
    """Say what this machine can use, what INT8 brings here, and which INT8 target it wants.

    \b
    Example:
      deploy-tools doctor
    """
    from benchmarks.environment import describe_environment
    from deploy_tools.runtimes.gpu import find_gpu, why_no_gpu

    environment, gpu = describe_environment(), find_gpu()
    parts = {
        name: {"found": _found(module), "extra": extra, "for": what}
        for name, (module, extra, what) in _PARTS.items()
    }
    cpu = environment["cpu"]
    target = _target(cpu, bool(parts["onnxruntime-ep-openvino"]["found"]))
    expected = expectation_of(cpu["architecture"], cpu["flags"])
    can_use, cores, providers = _can_use(cpu), _cores(cpu, environment["limits"]), _providers()
    if as_json:
        print_json({
            "environment": environment, "gpu": asdict(gpu) if gpu else None, "parts": parts,
            "target": target, "can_use": can_use, "cores": cores, "providers": providers,
            "expect": asdict(expected),
        })  # fmt: skip
        return
    for name, has in can_use.items():
        click.echo(f"{name}: {'yes' if has else 'no'}")
    click.echo(f"cores: {cores}")
    click.echo(f"onnxruntime providers: {', '.join(providers) or 'none'}")
    for key, value in environment.items():
        shown = (
            ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        )
        click.echo(f"{key}: {', '.join(map(str, shown)) if isinstance(shown, list) else shown}")
    for name, part in parts.items():
        state = (
            "found" if part["found"] else f"missing; pip install 'deploy-tools[{part['extra']}]'"
        )
        click.echo(f"{name}: {state} ({part['for']})")
    if gpu:
        click.echo(
            f"GPU: {gpu.name}, compute capability {gpu.compute_capability}, CUDA {gpu.driver}"
        )
    else:
        click.echo(f"GPU: none ({why_no_gpu()}); engines are built where they can be, not run")
    click.echo(f"INT8 target for this machine's CPU: {target}")
    for line in filter(None, (expected.int8, expected.bf16)):
        click.echo(line)
    click.echo(f"(source: {expected.source})")


def _can_use(cpu: dict[str, Any]) -> dict[str, bool]:
    """Return the CPU's features that decide what INT8 and bf16 bring, by name."""
    flags = set(cpu["flags"])
    if cpu["architecture"].lower() in ("aarch64", "arm64"):
        features = {
            "8-bit dot products": {"asimddp"}, "8-bit matrix products": {"i8mm"}, "bf16": {"bf16"}
        }  # fmt: skip
    else:
        features = {
            "AVX-512": {"avx512f"}, "VNNI": {"avx512_vnni", "avx_vnni"},
            "AMX (INT8)": {"amx_int8"}, "bf16": {"avx512_bf16", "amx_bf16"},
        }  # fmt: skip
    return {name: bool(flags & needed) for name, needed in features.items()}


def _cores(cpu: dict[str, Any], limits: dict[str, Any]) -> str:
    """Say how many cores and threads there are, and what the container allows of them."""
    usable, physical = cpu["cores_usable"], cpu["cores_physical"]
    text = f"{cpu['cores_total']} threads" + (f" on {physical} cores" if physical else "")
    if usable != cpu["cores_total"]:
        text += f", {usable} usable by this process"
    if limits["cpus"] is not None and limits["cpus"] < usable:
        least = max(1, int(limits["cpus"]))
        text += (
            f"; the cgroup allows the time of {limits['cpus']:g}, and more threads than that are "
            f"throttled: give --threads {least}"
        )
    if physical and cpu["cores_total"] > physical and usable > physical:
        text += (
            f"; two threads share a core's multipliers: try --threads {physical} beside the default"
        )
    return text


def _providers() -> list[str]:
    """Return onnxruntime's own providers; plugins such as OpenVINO's are among the parts."""
    try:
        return list(require("onnxruntime", "", "Running ONNX files").get_available_providers())
    except MissingDependencyError:
        return []


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _target(cpu: dict[str, Any], openvino: bool) -> str:
    if cpu["architecture"].lower() in ("aarch64", "arm64"):
        return "arm"
    if not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(cpu["flags"]):
        return "x86-no-vnni"
    return "openvino" if openvino else "ort-cpu"
