"""The process behind `benchmarks.memory`: a JSON request on stdin, one line of JSON on stdout."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from deploy_tools.errors import DeployToolsError, UserError


def main() -> None:
    """Answer one request; a user error goes back as JSON, a bug as a traceback."""
    request = json.load(sys.stdin)
    try:
        answer: dict[str, Any] = {"peak_rss_bytes": _peak_of(request)}
    except DeployToolsError as error:
        answer = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    print(json.dumps(answer), flush=True)


def _peak_of(request: dict[str, Any]) -> int:
    import numpy as np

    from deploy_tools.runtimes import RuntimeConfig, open_session

    session = open_session(Path(request["model"]), RuntimeConfig(**request["config"]))
    inputs = np.zeros(request["shape"], request["dtype"])
    try:
        for _ in range(request["calls"]):
            session.run(inputs)
    except Exception as error:  # every runtime has its own classes
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(
            f"{request['model']} cannot run inputs of shape {tuple(request['shape'])}: {reason}"
        ) from error
    return peak_rss()


def peak_rss() -> int:
    """Return the peak resident memory of this process, in bytes.

    Linux's ru_maxrss is inherited through fork and exec: a child of a big process reports the
    parent's peak. VmHWM belongs to the address space, which exec makes anew.
    """
    try:
        status = Path("/proc/self/status").read_text("utf-8")
    except OSError:
        return _peak_of_getrusage()
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else _peak_of_getrusage()


def _peak_of_getrusage() -> int:
    try:
        import resource
    except ImportError as error:
        raise UserError("peak memory cannot be measured on this system.") from error
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
