"""Device memory through pycuda (the [pycuda] extra).

The device's primary context is retained and pushed around every use, so that memory, streams
and events are valid for TensorRT and torch, which use that context too; pycuda's own
`autoinit` would make a second one. Run over the real pycuda 2026.1 with a driver that keeps
device memory on the host; not yet run on a GPU.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy_tools.errors import require
from deploy_tools.runtimes.device_memory import OUT_OF_MEMORY_HINT, DeviceError

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING; pycuda has no name for it


class PycudaMemory:
    """`DeviceMemory` over pycuda.

    pycuda frees streams and events when their last reference goes, which must be while the
    context is current: the references are held here and dropped in `free_...`.
    """

    name = "pycuda"
    no_graphs = "pycuda cannot capture CUDA graphs"

    def __init__(self, device: int = 0) -> None:
        self._cuda: Any = require("pycuda.driver", "pycuda", "Device memory through pycuda")
        self._memory: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}
        with self._trying(f"using GPU {device}"):
            self._context = _primary_context(device)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        with self._trying("making the GPU's context current"):
            self._context.push()
        try:
            yield
        finally:
            self._cuda.Context.pop()

    def allocate(self, size: int) -> int:
        with self._trying(f"allocating {size} bytes on the GPU"):
            memory = self._cuda.mem_alloc(size)
        self._memory[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        with self._trying("freeing memory of the GPU"):
            self._memory.pop(address).free()

    def pinned(self, count: int) -> NDArray[np.float32]:
        with self._trying(f"allocating {4 * count} bytes of page-locked host memory"):
            array: NDArray[np.float32] = self._cuda.pagelocked_empty(count, np.float32)
        return array

    def free_pinned(self, array: NDArray[np.float32]) -> None:
        with self._trying("freeing page-locked host memory"):
            owner: Any = array.base
            owner.free()

    def copy_in(self, address: int, array: NDArray[Any], stream: int) -> None:
        with self._trying(f"copying {array.nbytes} bytes to the GPU"):
            self._cuda.memcpy_htod_async(address, array, self._streams[stream])

    def copy_out(self, array: NDArray[np.float32], address: int, stream: int) -> None:
        with self._trying(f"copying {array.nbytes} bytes from the GPU"):
            self._cuda.memcpy_dtoh_async(array, address, self._streams[stream])

    def new_stream(self) -> int:
        with self._trying("making a stream"):
            stream = self._cuda.Stream(_NON_BLOCKING)
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def wait(self, stream: int) -> None:
        with self._trying("waiting for the GPU"):
            self._streams[stream].synchronize()

    def free_stream(self, stream: int) -> None:
        del self._streams[stream]

    def new_event(self) -> Any:
        with self._trying("making an event"):
            return [self._cuda.Event()]  # a list, so that `free_event` can drop the reference

    def record(self, event: Any, stream: int) -> None:
        with self._trying("recording an event"):
            event[0].record(self._streams[stream])

    def elapsed_ms(self, start: Any, end: Any) -> float:
        with self._trying("reading an event"):
            end[0].synchronize()
            return float(end[0].time_since(start[0]))

    def free_event(self, event: Any) -> None:
        event.clear()

    def begin_capture(self, stream: int) -> None:
        raise DeviceError(f"{self.no_graphs}.", 'Use the "cuda-python" memory for them.')

    def end_capture(self, stream: int) -> Any:
        raise DeviceError(f"{self.no_graphs}.")

    def launch(self, graph: Any, stream: int) -> None:
        raise DeviceError(f"{self.no_graphs}.")

    def free_graph(self, graph: Any) -> None:
        raise DeviceError(f"{self.no_graphs}.")

    def close(self) -> None:
        """The primary context stays retained, as with cuda-python; see `_primary_context`."""

    @contextlib.contextmanager
    def _trying(self, what: str) -> Iterator[None]:
        """Turn pycuda's errors, which name the driver's routine, into a DeviceError."""
        try:
            yield
        except self._cuda.Error as error:
            full = isinstance(error, self._cuda.MemoryError)
            raise DeviceError(
                f"{what} failed: {error}.", OUT_OF_MEMORY_HINT if full else ""
            ) from error


def open_memory(device: int = 0) -> PycudaMemory:
    """Open the device memory of a GPU; DeviceError where it cannot be used."""
    return PycudaMemory(device)


@functools.cache
def _primary_context(device: int) -> Any:
    """Retain a device's primary context once, until the process ends.

    Not once a session: pycuda's `detach` leaves a released primary context current, and its
    destructor takes it for an ordinary one and complains.
    """
    cuda: Any = require("pycuda.driver", "pycuda", "Device memory through pycuda")
    cuda.init()
    context = cuda.Device(device).retain_primary_context()
    atexit.register(context.detach)
    return context
