"""The machine and the software a figure was measured on, without names of hosts, users or paths."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from deploy_tools.runtimes.base import usable_cores
from deploy_tools.version import __version__

FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx_vnni_int8", "avx512_bf16", "avx512_fp16",
    "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
"""CPU features that decide which integer and bf16 kernels a runtime can use (Linux's names)."""

PACKAGES = (
    "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-openvino", "openvino",
    "tensorrt", "tensorrt-rtx-cu13", "torch", "torchvision", "timm", "onnxscript", "pillow",
)  # fmt: skip


def describe_environment() -> dict[str, Any]:
    """Return CPU, memory, operating system, Python and package versions.

    Values that this system does not tell are None. Nothing heavy is imported.
    """
    return {
        "cpu": _cpu(_read("/proc/cpuinfo")),
        "memory_bytes": _memory(_read("/proc/meminfo")),
        "limits": _cgroup_limits(Path("/sys/fs/cgroup")),
        "os": _operating_system(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": _versions(),
    }


def _cpu(cpuinfo: str) -> dict[str, Any]:
    fields = dict(re.findall(r"^([^\t:]+?)\s*:[ \t]*(.*)$", cpuinfo, re.MULTILINE))
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return {
        "model": fields.get("model name") or fields.get("Model") or platform.processor() or None,
        "architecture": platform.machine(),
        "cores_usable": usable_cores(),
        "cores_total": os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in flags],
    }


def _memory(meminfo: str) -> int | None:
    found = re.search(r"^MemTotal:\s+(\d+) kB", meminfo, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def _cgroup_limits(root: Path) -> dict[str, Any]:
    """Return the CPU and memory limits of the container, None where there is none.

    Version 2 (cpu.max, memory.max) first, then version 1.
    """
    cpus: float | None = None
    quota = _read(root / "cpu.max").split()
    if not quota:
        quota = [
            _read(root / "cpu" / "cpu.cfs_quota_us").strip(),
            _read(root / "cpu" / "cpu.cfs_period_us").strip(),
        ]
    with contextlib.suppress(ValueError, ZeroDivisionError, IndexError):
        cpus = int(quota[0]) / int(quota[1])
    memory: int | None = None
    text = _read(root / "memory.max") or _read(root / "memory" / "memory.limit_in_bytes")
    with contextlib.suppress(ValueError):
        memory = int(text)
    # Version 1 writes a huge number where there is no limit, and -1 for no CPU quota.
    return {
        "cpus": cpus if cpus is not None and cpus > 0 else None,
        "memory_bytes": memory if memory is not None and memory < 1 << 60 else None,
    }


def _operating_system() -> str:
    release: dict[str, str] = {}
    with contextlib.suppress(OSError, AttributeError):
        release = platform.freedesktop_os_release()
    # Only the kernel's number: its suffix may name the builder or the host.
    kernel = re.match(r"[\d.]*\d", platform.release())
    number = f" {kernel.group()}" if kernel else ""
    name = release.get("PRETTY_NAME")
    return f"{name}, {platform.system()}{number}" if name else f"{platform.system()}{number}"


def _versions() -> dict[str, str]:
    found = {"deploy-tools": __version__}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _read(path: str | Path) -> str:
    """The file's text, "" where it cannot be read (other systems, containers)."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return Path(path).read_text("utf-8")
    return ""
