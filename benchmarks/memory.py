"""Peak memory of a process that does nothing but run one model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import benchmarks
from deploy_tools import errors
from deploy_tools.errors import DeployToolsError, UserError
from deploy_tools.runtimes import RuntimeConfig


def peak_rss_of_model(
    model: Path,
    config: RuntimeConfig,
    shape: tuple[int, ...],
    calls: int = 3,
    timeout_s: float = 600.0,
    dtype: str = "float32",
) -> int:
    """Return the peak resident memory, in bytes, of a fresh process that opens and runs a model.

    shape, dtype: of the batch, as the model's input spec says. The figure holds the interpreter, the runtime's libraries,
    loading and `calls` runs: what a machine needs to serve the model from Python.
    Raises what opening or running the model raises, and UserError where the process dies or
    takes longer than `timeout_s` seconds.
    """
    request = {"model": str(model), "config": asdict(config), "shape": list(shape), "calls": calls}
    request["dtype"] = dtype
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory_worker"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"measuring the memory of {model} took over {timeout_s:.0f} seconds."
        ) from error
    answer = _answer(done.stdout)
    if "error" in answer:
        raise _rebuilt(answer)
    if "peak_rss_bytes" not in answer:
        lines = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        raise UserError(
            f"the process that measures the memory of {model} died: {lines[-1]}",
            "A negative code is a signal; -9 often means that memory ran out.",
        )
    return int(answer["peak_rss_bytes"])


def _environment() -> dict[str, str]:
    """The caller's environment, in which the worker finds the same packages."""
    root = str(Path(benchmarks.__file__).resolve().parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def _answer(stdout: str) -> dict[str, Any]:
    """The worker's last line; libraries may have printed before it."""
    lines = stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _rebuilt(answer: dict[str, Any]) -> DeployToolsError:
    """The worker's error as the class that it was there."""
    kind = getattr(errors, str(answer["error"]), UserError)
    if not (isinstance(kind, type) and issubclass(kind, DeployToolsError)):
        kind = UserError
    return kind(str(answer.get("message", "")), str(answer.get("hint", "")))
