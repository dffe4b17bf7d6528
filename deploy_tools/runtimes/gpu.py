"""The CUDA GPU of this machine, or in words why there is none.

Everything here goes through `cuda.bindings.runtime` (package cuda-bindings) and nvidia-smi;
neither is needed where no engine is to run. The paths that find a GPU have not been run where
this was written, which has none; those that find none have.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

VISIBLE = "CUDA_VISIBLE_DEVICES"
_SMI_SECONDS = 10.0
_FIELDS = (
    "clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw",
    "utilization.gpu", "pstate",
)  # fmt: skip
# One thing under two names: drivers from release 535 on know the first, older ones the second.
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")


@dataclass(frozen=True)
class Gpu:
    """A CUDA GPU.

    compute_capability: such as "8.9". driver, runtime: the newest CUDA that the driver runs and
    the CUDA that cuda-bindings was made for, such as "13.0". memory_bytes: all of its memory.
    """

    name: str
    compute_capability: str
    driver: str
    runtime: str
    memory_bytes: int


def find_gpu(device: int = 0) -> Gpu | None:
    """Return the GPU with this number, None where there is no usable one; raises nothing."""
    return _look(device)[0]


def why_no_gpu(device: int = 0) -> str:
    """Return in words why `find_gpu` finds none, and "" where it finds one."""
    return _look(device)[1]


def _look(device: int) -> tuple[Gpu | None, str]:
    runtime = _bindings()
    if runtime is None:
        return None, (
            "cuda-bindings is not installed; pip install 'deploy-tools[tensorrt-rtx]' "
            "or 'deploy-tools[tensorrt]'"
        )
    try:
        return _look_with(runtime, device)
    except Exception as error:  # a broken installation of the driver can fail in any way
        return None, f"CUDA cannot be asked for its devices: {error}"


def _bindings() -> ModuleType | None:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        return None


def _look_with(runtime: Any, device: int) -> tuple[Gpu | None, str]:
    success = runtime.cudaError_t.cudaSuccess
    error, count = runtime.cudaGetDeviceCount()
    if error != success:
        return None, _reason(runtime, error)
    if not 0 <= device < count:
        return None, f"there is no GPU {device}; this process sees {count}"
    error, properties = runtime.cudaGetDeviceProperties(device)
    if error != success:
        return None, _reason(runtime, error)
    return (
        Gpu(
            name=properties.name.decode(errors="replace").rstrip("\0"),
            compute_capability=f"{properties.major}.{properties.minor}",
            driver=_version(runtime.cudaDriverGetVersion()),
            runtime=_version(runtime.cudaRuntimeGetVersion()),
            memory_bytes=int(properties.totalGlobalMem),
        ),
        "",
    )


def _reason(runtime: Any, error: Any) -> str:
    """Say what an error of looking for devices means."""
    errors = runtime.cudaError_t
    if error == errors.cudaErrorInsufficientDriver:
        # CUDA gives this error for no driver and for an old one; only the version tells them apart.
        driver, needed = runtime.cudaDriverGetVersion(), runtime.cudaRuntimeGetVersion()
        if not driver[1]:
            return "no CUDA driver"
        return f"driver too old for CUDA {_version(needed)} (it runs up to CUDA {_version(driver)})"
    if error == errors.cudaErrorNoDevice:
        visible = os.environ.get(VISIBLE)
        if visible is None:
            return "no CUDA device"
        said = "is empty" if not visible.strip() else f'is "{visible}"'
        return f"no CUDA device is visible ({VISIBLE} {said})"
    name, text = runtime.cudaGetErrorName(error)[1], runtime.cudaGetErrorString(error)[1]
    return f"CUDA says {name.decode()}: {text.decode()}"


def _version(answer: Sequence[Any]) -> str:
    """13050 is CUDA 13.5."""
    number = int(answer[1] or 0)
    return f"{number // 1000}.{number % 1000 // 10}"


def gpu_state(device: int = 0) -> dict[str, Any]:
    """Return clocks (MHz), temperature (C), power (W) and throttle reasons from nvidia-smi.

    Keys are nvidia-smi's; what it does not tell is None. {} where there is no nvidia-smi
    (Jetson has none), no GPU, or it fails or takes over 10 seconds.
    """
    program = shutil.which("nvidia-smi")
    bus = _bus_id(device)
    if program is None or not bus:
        return {}
    for reasons in (*_REASONS, ""):
        fields = (*_FIELDS, *filter(None, [reasons]))
        text = _query(program, bus, fields)
        if text:
            return _parsed(text, fields)
    return {}


def _bus_id(device: int) -> str:
    """nvidia-smi counts all GPUs, this process the visible ones: the bus id says which is meant."""
    runtime = _bindings()
    if runtime is None:
        return ""
    error, found = runtime.cudaDeviceGetPCIBusId(32, device)
    if error != runtime.cudaError_t.cudaSuccess:
        return ""
    return str(found.decode().split("\0")[0])


def _query(program: str, bus: str, fields: Sequence[str]) -> str:
    command = [program, f"--id={bus}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SMI_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _parsed(text: str, fields: Sequence[str]) -> dict[str, Any]:
    """One CSV line; "[N/A]" and the like become None, numbers become numbers."""
    values = [value.strip() for value in text.splitlines()[0].split(",")]
    if len(values) != len(fields):
        return {}
    state: dict[str, Any] = {}
    for field, value in zip(fields, values, strict=True):
        # The reasons have one of two names; readers see one.
        key = "clocks_event_reasons.active" if field in _REASONS else field
        state[key] = _value(value)
    return state


def _value(text: str) -> float | str | None:
    if not text or text.startswith("["):
        return None
    try:
        return float(text)
    except ValueError:
        return text
