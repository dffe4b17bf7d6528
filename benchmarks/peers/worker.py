"""The process that runs one tool once: request file in, answer file out.

    python -m benchmarks.peers.worker REQUEST.json ANSWER.json

Tools print where they like, so the answer has a file of its own.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.memory_worker import peak_rss
from benchmarks.peers.base import Job
from deploy_tools.errors import DeployToolsError


def main() -> None:
    """Do what the request asks; a failure of the tool is an answer, not a crash."""
    request, answer = (Path(name) for name in sys.argv[1:3])
    values = json.loads(request.read_text("utf-8"))
    try:
        found = _run(values)
    except DeployToolsError as error:
        found = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    except Exception as error:  # every tool has its own classes
        found = {"error": "PeerError", "message": reason_of(error), "hint": ""}
    answer.write_text(json.dumps(found), "utf-8")


def _run(request: dict[str, Any]) -> dict[str, Any]:
    tool = importlib.import_module(request["adapter"])
    job, path = Job.from_dict(request["job"]), Path(request["path"])
    tool.load()
    started, worked = time.monotonic(), _cpu_seconds()
    tool.quantize(job, path, **request["settings"])
    seconds, cpu = time.monotonic() - started, _cpu_seconds() - worked
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_rss_bytes": peak_rss()}


def _cpu_seconds() -> float:
    """Of all threads and of ended child processes."""
    return sum(os.times()[:4])


def reason_of(error: Exception) -> str:
    """Return the class and first line of an error, with files named without their folders."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return short(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)


def short(text: str) -> str:
    """Return at most 300 characters on one line, with files named without their folders."""
    return re.sub(r"(?:/[\w.+-]+)+/([\w.+-]+)", r"\1", " ".join(text.split()))[:300]


if __name__ == "__main__":
    main()
