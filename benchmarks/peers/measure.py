"""Run one tool in a process of its own, since tools leave memory and settings behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import benchmarks
from benchmarks.peers.base import Job, PeerError, PeerFile
from deploy_tools import errors

_TIMEOUT_S = 3600.0


def measure(
    adapter: str,
    job: Job,
    path: Path,
    settings: Mapping[str, Any],
    python: Path | None = None,
    timeout_s: float = _TIMEOUT_S,
) -> PeerFile:
    """Make a quantized file in a fresh process and say what it cost.

    adapter: the module with `load()`, which imports the tool, and `quantize(job, path,
    **settings)`. python: the interpreter of another environment. Raises
    MissingDependencyError where the tool is not installed and PeerError where it fails.
    """
    command = [str(python or sys.executable), "-m", "benchmarks.peers.worker"]
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        values = {"adapter": adapter, "job": job.to_dict(), "path": str(path)}
        request.write_text(json.dumps(values | {"settings": dict(settings)}), "utf-8")
        try:
            done = subprocess.run(
                [*command, str(request), str(answer)],
                capture_output=True,
                text=True,
                timeout=timeout_s,
                env=_environment(folder),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise PeerError(f"it took over {timeout_s:.0f} seconds and was stopped.") from error
        found = _answer(answer, done)
    if "error" in found:
        raise _rebuilt(found)
    if not path.is_file():
        raise PeerError("it ended without an error and without a file.")
    return PeerFile(
        path, found["seconds"], found["cpu_seconds"], found["peak_rss_bytes"], size_of(path)
    )


def size_of(path: Path) -> int:
    """Return the bytes of a model: OpenVINO's weights lie in a .bin beside the .xml."""
    beside = path.with_suffix(".bin")
    extra = beside.stat().st_size if path.suffix == ".xml" and beside.is_file() else 0
    return path.stat().st_size + extra


def _environment(folder: str) -> dict[str, str]:
    """The caller's environment; the worker finds the same packages and litters nowhere else."""
    root = str(Path(benchmarks.__file__).resolve().parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    # Telemetry of OpenVINO's tools would call home; CUDA is not what these figures are about.
    quiet = {"OPENVINO_TELEMETRY_OPT_OUT": "1", "CI": "true", "CUDA_VISIBLE_DEVICES": ""}
    return os.environ | quiet | {"PYTHONPATH": os.pathsep.join(paths), "TMPDIR": folder}


def _answer(path: Path, done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return found
    lines = done.stderr.strip().splitlines() or ["it said nothing"]
    raise PeerError(
        f"its process died with code {done.returncode}: {lines[-1][:200]}",
        "A negative code is a signal; -9 often means that memory ran out.",
    )


def _rebuilt(found: Mapping[str, Any]) -> errors.DeployToolsError:
    """The worker's error as the class that it was there."""
    kind = getattr(errors, found["error"], PeerError)
    error: errors.DeployToolsError = kind(found["message"], found["hint"])
    return error
