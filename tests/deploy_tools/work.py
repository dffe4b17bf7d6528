"""How much Python works, counted: what a test of growth can rely on where seconds vary."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def work_of(function: Callable[[], object]) -> int:
    """Return how many bytecodes and calls of C functions `function` takes.

    What happens inside a C function is not seen, such as a list's search of an item.
    """
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count
