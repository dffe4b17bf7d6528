"""deploy-tools doctor: what this machine can run."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict
from typing import Any

import click

from deploy_tools.cli.common import output_options, print_json

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
    """Say what this machine has, which extras are missing, and which INT8 target it wants.

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
    target = _target(environment["cpu"], bool(parts["onnxruntime-ep-openvino"]["found"]))
    if as_json:
        found = asdict(gpu) if gpu else None
        print_json({"environment": environment, "gpu": found, "parts": parts, "target": target})
        return
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
