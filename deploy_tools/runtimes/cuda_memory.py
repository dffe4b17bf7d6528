"""Device memory through cuda-python: `cuda.bindings.runtime` (package cuda-bindings).

Written against the bindings 12.6 to 13.5. Where this was written there is no GPU, so only the
refusals were run; every name used is checked to exist by the tests.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy_tools.errors import require
from deploy_tools.runtimes.device_memory import OUT_OF_MEMORY_HINT, DeviceError


class CudaMemory:
    """`DeviceMemory` over the CUDA runtime; its context is the device's primary one."""

    name = "cuda-python"
    no_graphs = ""

    def __init__(self, device: int = 0) -> None:
        self._cuda: Any = require("cuda.bindings.runtime", "tensorrt-rtx", "Running engines")
        self._device = device
        self._pinned: dict[int, int] = {}  # id of an array -> its address
        # cudaSetDevice makes the primary context: what is wrong with the device shows here.
        self._done(self._cuda.cudaSetDevice(device), f"using GPU {device}")

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        before = self._done(self._cuda.cudaGetDevice(), "asking for the current GPU")
        self._done(self._cuda.cudaSetDevice(self._device), f"using GPU {self._device}")
        try:
            yield
        finally:
            if before != self._device:
                self._done(self._cuda.cudaSetDevice(before), f"going back to GPU {before}")

    def allocate(self, size: int) -> int:
        return int(self._done(self._cuda.cudaMalloc(size), f"allocating {size} bytes on the GPU"))

    def free(self, address: int) -> None:
        self._done(self._cuda.cudaFree(address), "freeing memory of the GPU")

    def pinned(self, count: int) -> NDArray[np.float32]:
        size = 4 * count
        what = f"allocating {size} bytes of page-locked host memory"
        address = int(self._done(self._cuda.cudaMallocHost(size), what))
        array = np.ctypeslib.as_array((ctypes.c_float * count).from_address(address))
        self._pinned[id(array)] = address
        return array

    def free_pinned(self, array: NDArray[np.float32]) -> None:
        address = self._pinned.pop(id(array))
        self._done(self._cuda.cudaFreeHost(address), "freeing page-locked host memory")

    def copy_in(self, address: int, array: NDArray[Any], stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        done = self._cuda.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, stream)
        self._done(done, f"copying {array.nbytes} bytes to the GPU")

    def copy_out(self, array: NDArray[np.float32], address: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        done = self._cuda.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, kind, stream)
        self._done(done, f"copying {array.nbytes} bytes from the GPU")

    def new_stream(self) -> int:
        # Non-blocking: what others do on the default stream does not hold this one up.
        flags = self._cuda.cudaStreamNonBlocking
        return int(self._done(self._cuda.cudaStreamCreateWithFlags(flags), "making a stream"))

    def wait(self, stream: int) -> None:
        self._done(self._cuda.cudaStreamSynchronize(stream), "waiting for the GPU")

    def free_stream(self, stream: int) -> None:
        self._done(self._cuda.cudaStreamDestroy(stream), "freeing a stream")

    def new_event(self) -> Any:
        return self._done(self._cuda.cudaEventCreate(), "making an event")

    def record(self, event: Any, stream: int) -> None:
        self._done(self._cuda.cudaEventRecord(event, stream), "recording an event")

    def elapsed_ms(self, start: Any, end: Any) -> float:
        self._done(self._cuda.cudaEventSynchronize(end), "waiting for an event")
        return float(self._done(self._cuda.cudaEventElapsedTime(start, end), "reading an event"))

    def free_event(self, event: Any) -> None:
        self._done(self._cuda.cudaEventDestroy(event), "freeing an event")

    def begin_capture(self, stream: int) -> None:
        # Thread-local: other threads may go on using CUDA, torch's for example.
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._done(self._cuda.cudaStreamBeginCapture(stream, mode), "beginning a CUDA graph")

    def end_capture(self, stream: int) -> Any:
        graph = self._done(self._cuda.cudaStreamEndCapture(stream), "ending a CUDA graph")
        try:
            return self._done(self._cuda.cudaGraphInstantiate(graph, 0), "making a CUDA graph")
        finally:
            self._done(self._cuda.cudaGraphDestroy(graph), "freeing a captured CUDA graph")

    def launch(self, graph: Any, stream: int) -> None:
        self._done(self._cuda.cudaGraphLaunch(graph, stream), "launching a CUDA graph")

    def free_graph(self, graph: Any) -> None:
        self._done(self._cuda.cudaGraphExecDestroy(graph), "freeing a CUDA graph")

    def close(self) -> None:
        """The primary context stays: other libraries of this process may be using it."""

    def _done(self, answer: tuple[Any, ...], what: str) -> Any:
        """Return what a call gave; DeviceError with CUDA's name for what went wrong."""
        error = answer[0]
        if error == self._cuda.cudaError_t.cudaSuccess:
            return answer[1] if len(answer) > 1 else None
        # An error that does not break the context is kept and would show in the next call too.
        self._cuda.cudaGetLastError()
        text = self._cuda.cudaGetErrorString(error)[1].decode()
        full = error == self._cuda.cudaError_t.cudaErrorMemoryAllocation
        raise DeviceError(
            f"{what} failed: {error.name} ({text}).", OUT_OF_MEMORY_HINT if full else ""
        )


def open_memory(device: int = 0) -> CudaMemory:
    """Open the device memory of a GPU; DeviceError where it cannot be used."""
    return CudaMemory(device)
