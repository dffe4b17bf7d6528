"""One logger a flavour: who hears what, and that nothing is called after it is freed."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploy_tools.runtimes import trt_log
from deploy_tools.runtimes.flavours import Flavour, find_flavour
from deploy_tools.runtimes.trt_log import ERRORS, listening, logger_of


@pytest.fixture
def flavour() -> Flavour:
    pytest.importorskip("tensorrt_rtx")
    return find_flavour("tensorrt-rtx")


def in_a_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def say(flavour: Flavour, severity: str, text: str) -> None:
    logger_of(flavour).log(SimpleNamespace(name=severity), text)


def test_there_is_one_logger_which_is_a_real_one(flavour: Flavour) -> None:
    assert logger_of(flavour) is logger_of(find_flavour("tensorrt-rtx"))
    assert isinstance(logger_of(flavour), flavour.module.ILogger)


def test_lines_go_to_who_listens_in_the_thread(flavour: Flavour) -> None:
    other: list[Any] = []

    def elsewhere() -> None:
        with listening(flavour, other):
            say(flavour, "INFO", "theirs")

    with listening(flavour) as lines:
        say(flavour, "VERBOSE", "a")
        in_a_thread(elsewhere)
        with listening(flavour, only=ERRORS) as inner:
            say(flavour, "WARNING", "b")
            say(flavour, "ERROR", "c")
        say(flavour, "INTERNAL_ERROR", "d")
    say(flavour, "ERROR", "dropped")
    assert lines == [("VERBOSE", "a"), ("INTERNAL_ERROR", "d")]
    assert inner == [("ERROR", "c")]
    assert other == [("INFO", "theirs")]


def test_lines_of_a_thread_of_the_librarys_own(flavour: Flavour) -> None:
    def own_thread() -> None:
        say(flavour, "VERBOSE", "layer")
        say(flavour, "ERROR", "wrong")

    second: list[Any] = []

    def beside() -> None:
        with listening(flavour, second):
            in_a_thread(own_thread)

    with listening(flavour) as lines:
        in_a_thread(own_thread)
        assert lines == [("VERBOSE", "layer"), ("ERROR", "wrong")]
        in_a_thread(beside)
    # Whose they are cannot be told: an error reaches both, a layer neither.
    assert lines == [("VERBOSE", "layer"), ("ERROR", "wrong"), ("ERROR", "wrong")]
    assert second == [("ERROR", "wrong")]


def test_listening_ends_with_an_error_too(flavour: Flavour) -> None:
    with pytest.raises(KeyError), listening(flavour):
        raise KeyError
    assert not trt_log._LISTENERS[flavour.name]._by_thread


OUTLIVES = """
import gc, sys
from contextlib import ExitStack
from pathlib import Path
from deploy_tools.engines.build import BuildConfig, engine_from_onnx
from deploy_tools.runtimes import tensorrt
from deploy_tools.runtimes.flavours import find_flavour
from deploy_tools.runtimes.gpu import Gpu
flavour, gpu = find_flavour("tensorrt-rtx"), Gpu("NVIDIA L4", "8.9", "13.0", "13.0", 1)
def opened():
    errors = tensorrt._Errors(flavour)
    return errors, tensorrt._new_runtime(Path("x"), flavour, gpu, errors)
first, second = opened(), opened()
del first
gc.collect()
junk = [bytes(64) for _ in range(10000)]
errors, runtime = second
with errors.listening():  # this goes through the process's logger, which came with the first
    flavour.module.get_plugin_registry().load_library("/none/such.so")
print("said:", errors.take())
engine_from_onnx(Path(sys.argv[1]), Path(sys.argv[2]), BuildConfig("tensorrt-rtx"))
del runtime, second
gc.collect()
with errors.listening():
    again = tensorrt._new_runtime(Path("x"), flavour, gpu, errors)
    assert again.deserialize_cuda_engine(b"no engine" * 100) is None
print("then:", errors.take())
"""


def test_engines_and_builds_may_go_in_any_order(
    flavour: Flavour, demo_onnx: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OUTLIVES, str(demo_onnx), str(tmp_path / "x.engine")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said, then = done.stdout.splitlines()
    assert "/none/such.so" in said
    assert "magicTag" in then
    assert (tmp_path / "x.engine").is_file()
