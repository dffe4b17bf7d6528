"""Choosing device memory, and what cuda-python says where there is no GPU.

What needs a GPU is in tests/gpu.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from host_memory import HostMemory

from deploy_tools.errors import MissingDependencyError, UserError
from deploy_tools.runtimes.cuda_memory import CudaMemory
from deploy_tools.runtimes.device_memory import MEMORIES, DeviceError, DeviceMemory, memory_named
from deploy_tools.runtimes.gpu import find_gpu
from deploy_tools.runtimes.pycuda_memory import PycudaMemory


def interface(kind: type) -> dict[str, list[str]]:
    """Public methods and the names of what they take."""
    return {
        name: list(inspect.signature(member).parameters)
        for name, member in vars(kind).items()
        if callable(member) and not name.startswith("_")
    }


@pytest.mark.parametrize("kind", [CudaMemory, PycudaMemory, HostMemory])
def test_every_implementation_has_the_whole_interface(kind: type) -> None:
    found = interface(kind)
    for name, parameters in interface(DeviceMemory).items():
        assert found[name] == parameters, name


def test_an_unknown_name() -> None:
    with pytest.raises(UserError, match=r'"pycdua" is not known.*Did you mean "pycuda"'):
        memory_named("pycdua")
    assert list(MEMORIES) == ["cuda-python", "pycuda"]


def test_pycuda_missing() -> None:
    if importlib.util.find_spec("pycuda"):
        pytest.skip("pycuda is installed")
    with pytest.raises(MissingDependencyError, match=r"deploy-tools\[pycuda\]"):
        memory_named("pycuda")


def test_no_gpu_is_a_device_error_with_cudas_name() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    if find_gpu() is not None:
        pytest.skip("there is a GPU here; tests/gpu uses it")
    with pytest.raises(DeviceError, match=r"using GPU 0 failed: cudaError\w+ \(.+\)") as caught:
        memory_named()
    assert caught.value.exit_code == 3


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real bindings with a cudaSetDevice that says yes: every later call is refused."""
    bindings: Any = pytest.importorskip("cuda.bindings.runtime")
    if find_gpu() is not None:
        pytest.skip("there is a GPU here, so the calls are not refused")
    monkeypatch.setattr(bindings, "cudaSetDevice", lambda device: (bindings.cudaError_t(0),))
    return CudaMemory()


def test_each_call_says_what_was_tried(refusing: Any) -> None:
    """No driver: each real call of the bindings takes these arguments and gives its error code."""
    array = np.zeros(4, np.float32)
    calls: dict[str, tuple[str, Callable[[], Any]]] = {
        "active": ("asking for the current GPU", refusing.active().__enter__),
        "allocate": ("allocating 64 bytes on the GPU", lambda: refusing.allocate(64)),
        "free": ("freeing memory of the GPU", lambda: refusing.free(4096)),
        "pinned": ("allocating 16 bytes of page-locked host memory", lambda: refusing.pinned(4)),
        "copy_in": ("copying 16 bytes to the GPU", lambda: refusing.copy_in(4096, array, 7)),
        "copy_out": ("copying 16 bytes from the GPU", lambda: refusing.copy_out(array, 4096, 7)),
        "new_stream": ("making a stream", refusing.new_stream),
        "wait": ("waiting for the GPU", lambda: refusing.wait(7)),
        "free_stream": ("freeing a stream", lambda: refusing.free_stream(7)),
        "new_event": ("making an event", refusing.new_event),
        "record": ("recording an event", lambda: refusing.record(9, 7)),
        "elapsed_ms": ("waiting for an event", lambda: refusing.elapsed_ms(9, 10)),
        "free_event": ("freeing an event", lambda: refusing.free_event(9)),
        "begin_capture": ("beginning a CUDA graph", lambda: refusing.begin_capture(7)),
        "end_capture": ("ending a CUDA graph", lambda: refusing.end_capture(7)),
        "launch": ("launching a CUDA graph", lambda: refusing.launch(11, 7)),
        "free_graph": ("freeing a CUDA graph", lambda: refusing.free_graph(11)),
    }
    # Page-locked memory that was never given cannot be freed, and closing asks for nothing.
    assert set(calls) == set(interface(DeviceMemory)) - {"free_pinned", "close"}
    for what, call in calls.values():
        with pytest.raises(DeviceError) as caught:
            call()
        assert re.match(rf"{what} failed: cudaError\w+ \(.+\)\.", caught.value.message)


def test_out_of_memory_says_what_to_do(refusing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import cuda.bindings.runtime as bindings

    full = bindings.cudaError_t.cudaErrorMemoryAllocation
    monkeypatch.setattr(bindings, "cudaMalloc", lambda size: (full, None))
    with pytest.raises(DeviceError, match=r"cudaErrorMemoryAllocation .*smaller largest batch"):
        refusing.allocate(1 << 60)


def test_going_back_to_the_gpu_that_was_current(
    refusing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cuda.bindings.runtime as bindings

    used: list[int] = []
    yes = bindings.cudaError_t(0)
    monkeypatch.setattr(bindings, "cudaSetDevice", lambda device: (used.append(device), (yes,))[1])
    monkeypatch.setattr(bindings, "cudaGetDevice", lambda: (yes, 3))
    with refusing.active():
        assert used == [0]
    assert used == [0, 3]


def test_a_fault_of_the_gpu_is_no_missing_dependency() -> None:
    """A run passes over what is missing and ends with 0; it must not pass over a fault."""
    from deploy_tools.errors import DeployToolsError, MissingDependencyError

    error = DeviceError("waiting for the GPU failed: cudaErrorIllegalAddress.")
    assert isinstance(error, DeployToolsError)
    assert not isinstance(error, MissingDependencyError)
    assert error.exit_code == 3
