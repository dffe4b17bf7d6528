"""The machine and the software a figure was measured on, without names of hosts, users or paths."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.energy import find_energy_meter
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
        "limits": limits(),
        "energy": str(find_energy_meter()),
        "os": _operating_system(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": _versions(),
    }


def limits() -> dict[str, Any]:
    """Return the cgroups' limits over this process: "cpus", "memory_bytes", None without one."""
    return _cgroup_limits(Path("/sys/fs/cgroup"), _read("/proc/self/cgroup"))


def _cpu(cpuinfo: str) -> dict[str, Any]:
    fields = dict(re.findall(r"^([^\t:]+?)\s*:[ \t]*(.*)$", cpuinfo, re.MULTILINE))
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return {
        "model": fields.get("model name") or fields.get("Model") or platform.processor() or None,
        "architecture": platform.machine(),
        "cores_usable": usable_cores(),
        "cores_total": os.cpu_count(),
        "cores_physical": _physical_cores(cpuinfo),
        "flags": [flag for flag in FLAGS if flag in flags],
    }


def _physical_cores(cpuinfo: str) -> int | None:
    """Return the number of cores, each of which may run several threads; None where unknown.

    `cores_total` and `cores_usable` count threads, as the operating system does.
    """
    found = set()
    for block in cpuinfo.split("\n\n"):
        fields = dict(re.findall(r"^(physical id|core id)\s*:\s*(\d+)$", block, re.MULTILINE))
        if len(fields) == 2:
            found.add((fields["physical id"], fields["core id"]))
    return len(found) or None


def _memory(meminfo: str) -> int | None:
    found = re.search(r"^MemTotal:\s+(\d+) kB", meminfo, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def _cgroup_limits(root: Path, own: str = "") -> dict[str, Any]:
    """Return the least CPU and memory limits over this process, None where there is none.

    root: where cgroups are mounted. own: the text of /proc/self/cgroup, which names the groups
    that this process is in; the limits of those above hold too. Version 2 (cpu.max, memory.max)
    and version 1.
    """
    cpus = [_cpu_limit(folder) for folder in _groups(root, own, "cpu")]
    memory = [_memory_limit(folder) for folder in _groups(root, own, "memory")]
    return {
        "cpus": min((limit for limit in cpus if limit is not None), default=None),
        "memory_bytes": min((limit for limit in memory if limit is not None), default=None),
    }


def _groups(root: Path, own: str, controller: str) -> list[Path]:
    """Return the folders of the groups that this process is in, the outermost first."""
    folders = [root, root / controller]
    for line in own.splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        base = root if not controllers else root / controller
        if controllers and controller not in controllers.split(","):
            continue
        for part in path.strip("/").split("/"):
            if part in ("", ".."):  # a group outside this container's view
                break
            base = base / part
            folders.append(base)
    return folders


def _cpu_limit(folder: Path) -> float | None:
    quota = _read(folder / "cpu.max").split() or [
        _read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()
    ]  # fmt: skip
    with contextlib.suppress(ValueError, ZeroDivisionError, IndexError):
        cpus = int(quota[0]) / int(quota[1])
        return cpus if cpus > 0 else None  # version 1 writes -1 where there is no limit
    return None


def _memory_limit(folder: Path) -> int | None:
    with contextlib.suppress(ValueError):
        found = int(_read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes"))
        return found if found < 1 << 60 else None  # version 1 writes a huge number for none
    return None


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
