"""What TensorRT says while it builds: every line, with its severity, one log a build.

TensorRT's reasons for a failure and, with detailed profiling verbosity, the layers of the
engine appear nowhere else where there is no GPU.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from deploy_tools.runtimes.trt_log import ERRORS, Line

# What the library puts around its reason: "IBuilder::build...: Error Code 4: API Usage Error
# (the reason In function at /source.cpp:12)", and the same inside for its own parts.
_CODE = re.compile(r"^.*?Error Code \d+: [^()]*\((?P<reason>.*)\)$", re.DOTALL)
_SOURCE = re.compile(r"\s*\bIn (?:\(anonymous namespace\))?\S+ at \S+:\d+|\[\w+\.\w+:\d+: \w+\] ?")


@dataclass
class BuildLog:
    """The lines of one build, in order: (severity, text), such as ("ERROR", "...")."""

    lines: list[Line] = field(default_factory=list)

    def texts(self) -> list[str]:
        """Every line without its severity."""
        return [text for _, text in self.lines]

    def errors(self) -> list[str]:
        """The reasons TensorRT gave, oldest first, without its own source positions."""
        return [_plain(text) for severity, text in self.lines if severity in ERRORS]


def _plain(text: str) -> str:
    found = _CODE.match(text.strip())
    reason = _SOURCE.sub("", found["reason"] if found else text).strip()
    # A reason that was nothing but another one in brackets.
    return (reason[1:-1] if reason.startswith("(") and reason.endswith(")") else reason).strip()
