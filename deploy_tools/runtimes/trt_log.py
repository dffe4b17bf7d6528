"""One logger for each flavour of TensorRT, which is never freed; who listens gets its lines.

TensorRT keeps the logger of the first builder or runtime as that of the whole process, and uses
it until the last object of any of them is gone, whatever loggers came later. A logger for each
build or engine would be called after it is freed. So there is one, and its lines go to whoever
listens in the thread that TensorRT calls it from.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from deploy_tools.runtimes.flavours import Flavour

Line = tuple[str, str]
"""Severity and text, such as ("ERROR", "...")."""

ERRORS = ("ERROR", "INTERNAL_ERROR")
_SERIOUS = (*ERRORS, "WARNING")


@dataclass(frozen=True, eq=False)
class _Listener:
    lines: list[Line]
    only: tuple[str, ...]

    def keep(self, severity: str, text: str) -> None:
        if not self.only or severity in self.only:
            self.lines.append((severity, text))


class _Listeners:
    """By thread: who gets the lines of its calls into TensorRT.

    There is no lock: TensorRT may log while Python frees one of its objects, which may be in the
    middle of any of these methods. Every step is one operation on a dict or a list.
    """

    def __init__(self) -> None:
        self._by_thread: dict[int, _Listener] = {}

    def put(self, listener: _Listener | None) -> _Listener | None:
        """Let this thread's lines go to a listener, or nowhere; returns the one before."""
        here = threading.get_ident()
        before = self._by_thread.get(here)
        if listener is None:
            self._by_thread.pop(here, None)
        else:
            self._by_thread[here] = listener
        return before

    def say(self, severity: str, text: str) -> None:
        """Give a line to the listener of this thread.

        A thread in which nobody listens may be one of TensorRT's own. Its lines go to the one
        listener there is; of several all get what is wrong, since one of them needs it, and
        nobody the rest, since another build's layers would be taken for one's own.
        """
        own = self._by_thread.get(threading.get_ident())
        if own is not None:
            own.keep(severity, text)
            return
        others = list(self._by_thread.values())
        if len(others) == 1 or severity in _SERIOUS:
            for other in others:
                other.keep(severity, text)


_LISTENERS: dict[str, _Listeners] = {}
_LOGGERS: dict[str, Any] = {}


def logger_of(flavour: Flavour) -> Any:
    """Return the ILogger of a flavour's module, always the same one."""
    if flavour.name not in _LOGGERS:
        logger = _new_logger(flavour.module, _listeners_of(flavour))
        # setdefault: of two threads that come here first, both must leave with the same one.
        if _LOGGERS.setdefault(flavour.name, logger) is logger:
            # One reference that nobody gives back: TensorRT's objects may outlive this module.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(logger))
    return _LOGGERS[flavour.name]


@contextlib.contextmanager
def listening(
    flavour: Flavour, lines: list[Line] | None = None, only: tuple[str, ...] = ()
) -> Iterator[list[Line]]:
    """Collect in `lines` (default: a new list) what TensorRT says to this thread inside.

    only: the severities to keep, () for all. It is for objects that were made with `logger_of`.
    Listening again inside takes the lines for as long as that lasts; what is said where nobody
    listens is dropped.
    """
    kept: list[Line] = [] if lines is None else lines
    listeners = _listeners_of(flavour)
    before = listeners.put(_Listener(kept, only))
    try:
        yield kept
    finally:
        listeners.put(before)


def _listeners_of(flavour: Flavour) -> _Listeners:
    return _LISTENERS.setdefault(flavour.name, _Listeners())


def _new_logger(trt: Any, listeners: _Listeners) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """No error may leave `log`: there is C++ above it."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            listeners.say(severity.name, msg)

    return Logger()
