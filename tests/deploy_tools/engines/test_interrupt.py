"""Ctrl-C and errors of callbacks end work that runs in a library."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable

import pytest

from deploy_tools.engines.interrupt import Cancel, run_cancellable


def test_results_and_errors_come_back() -> None:
    assert run_cancellable(lambda cancel: 3) == 3
    with pytest.raises(ZeroDivisionError):
        run_cancellable(lambda cancel: 1 // 0)


def test_the_work_runs_beside_the_caller() -> None:
    assert run_cancellable(lambda cancel: threading.current_thread().name) == "deploy-tools-build"


def test_the_first_reason_to_cancel_is_raised_even_where_the_work_fails_of_it() -> None:
    def work(cancel: Cancel) -> int:
        cancel(BrokenPipeError("nobody reads"))
        cancel(KeyError("later"))
        assert cancel.is_asked
        raise RuntimeError("the build was canceled")

    with pytest.raises(BrokenPipeError, match="nobody reads"):
        run_cancellable(work)


def test_ctrl_c_asks_the_work_to_end_and_waits_for_it() -> None:
    code = """
import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
from deploy_tools.engines.interrupt import run_cancellable

def work(cancel):
    os.kill(os.getpid(), signal.SIGINT)
    deadline = time.monotonic() + 30
    while not cancel.is_asked and time.monotonic() < deadline:
        time.sleep(0.01)
    print("asked", cancel.is_asked)
    time.sleep(0.3)
    print("ended", flush=True)

try:
    run_cancellable(work)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["asked", "True", "ended", "interrupted"], done.stderr


def test_a_second_ctrl_c_does_not_wait() -> None:
    code = """
import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
from deploy_tools.engines.interrupt import run_cancellable

def work(cancel):
    os.kill(os.getpid(), signal.SIGINT)
    while not cancel.is_asked:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(120)

try:
    run_cancellable(work)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["interrupted"], done.stderr
    assert time.monotonic() - started < 60


class Library:
    """Stands for an object of TensorRT."""


def raises_and_drops(
    work: Callable[[Cancel], None], kind: type[BaseException], made: list[weakref.ref[Library]]
) -> None:
    """Run `work` without Python's collector: what it made is gone while its error is kept."""
    gc.disable()
    try:
        with pytest.raises(kind) as caught:
            run_cancellable(work)
        assert made[0]() is None
        assert caught.tb is not None
    finally:
        gc.enable()


def test_an_error_that_is_kept_holds_nothing_of_the_library() -> None:
    # Held objects would be freed by the collector, at a time when that can hang the library.
    made: list[weakref.ref[Library]] = []

    def work(cancel: Cancel) -> None:
        library = Library()
        made.append(weakref.ref(library))
        try:
            raise ValueError("inner")
        except ValueError as error:
            raise KeyError("outer") from error

    raises_and_drops(work, KeyError, made)


def test_a_reason_to_cancel_holds_nothing_of_the_library() -> None:
    made: list[weakref.ref[Library]] = []

    def callback() -> None:
        monitor = Library()
        made.append(weakref.ref(monitor))
        try:
            raise ValueError("behind the cause")
        except ValueError:
            raise BrokenPipeError("nobody reads") from OSError("the cause")

    def work(cancel: Cancel) -> None:
        try:
            callback()
        except BaseException as error:
            cancel(error)

    raises_and_drops(work, BrokenPipeError, made)


def test_what_both_cause_and_context_hold_is_dropped() -> None:
    made: list[weakref.ref[Library]] = []

    def fail() -> None:
        library = Library()
        made.append(weakref.ref(library))
        raise ValueError("the context")

    def work(cancel: Cancel) -> None:
        try:
            fail()
        except ValueError:
            raise KeyError("outer") from OSError("another cause")

    raises_and_drops(work, KeyError, made)
