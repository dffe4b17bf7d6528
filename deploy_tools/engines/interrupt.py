"""Run long work of a C++ library so that Ctrl-C, or an error of a callback, can end it."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Cancel:
    """Says to the work that it should end, and keeps the reason."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.reason: BaseException | None = None

    def __call__(self, reason: BaseException) -> None:
        """Ask the work to end; the first reason is kept."""
        if self.reason is None:
            self.reason = reason
        self._event.set()

    @property
    def is_asked(self) -> bool:
        """Whether somebody asked."""
        return self._event.is_set()


def run_cancellable(work: Callable[[Cancel], T]) -> T:
    """Run `work` in a thread of its own and return what it returns, or raise what it raises.

    Python handles a signal in the main thread only, between two of its instructions. Were the
    library called from there, Ctrl-C would be raised inside one of its callbacks into Python,
    and a C++ frame that may not throw would end the process. Here the main thread only waits.

    On Ctrl-C the work is asked to end; when it has, KeyboardInterrupt (or the reason that
    somebody else gave to the `Cancel`) is raised. A second Ctrl-C does not wait for it.
    """
    cancel = Cancel()
    go, done = threading.Event(), threading.Event()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        go.wait()
        try:
            if not cancel.is_asked:
                results.append(work(cancel))
        except BaseException as error:
            _release(error)
            errors.append(error)
        finally:
            done.set()

    try:
        threading.Thread(target=run, name="deploy-tools-build", daemon=True).start()
        go.set()
        _wait(done)
    except KeyboardInterrupt as interrupt:
        cancel(interrupt)
        if not go.is_set():  # nothing has begun, and nothing will
            go.set()
            raise
        _wait(done)
    if cancel.reason is not None:
        _release(cancel.reason)
        raise cancel.reason
    if errors:
        raise errors[0]
    return results[0]


def _release(error: BaseException) -> None:
    """Drop the local variables of the frames that an error came through.

    They hold the library's objects. An error that is kept forms a cycle with its frames, and
    Python's collector may free a cycle at any time: also inside a logger callback while the
    library holds its own lock, and freeing a builder there waits for that lock for ever.
    """
    left: list[BaseException | None] = [error]
    seen: set[int] = set()
    while left:
        found = left.pop()
        if found is not None and id(found) not in seen:
            seen.add(id(found))
            traceback.clear_frames(found.__traceback__)  # leaves those alone that still run
            left += [found.__cause__, found.__context__]


def _wait(done: threading.Event) -> None:
    # A signal that another thread receives does not wake this one; looking now and then does.
    while not done.wait(0.1):
        pass
