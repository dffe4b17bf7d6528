"""Device memory, streams, events and CUDA graphs: one small interface, two implementations.

The runner of engines uses nothing else of CUDA, so it never asks whether cuda-python or pycuda
is behind it. Both use the device's primary context, the one that torch uses too, so engines and
torch tensors can live side by side in one process.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from deploy_tools.errors import DeployToolsError, UserError, nearest

MEMORIES = {
    "cuda-python": "deploy_tools.runtimes.cuda_memory",
    "pycuda": "deploy_tools.runtimes.pycuda_memory",
}
"""By name; each module has `open_memory(device)`. The first is the default."""
OUT_OF_MEMORY_HINT = "Build the engine for a smaller largest batch, or free memory of the GPU."


class DeviceError(DeployToolsError):
    """The GPU, its driver or TensorRT refused or failed (exit 3): what was tried, and why.

    Not a MissingDependencyError, which a run takes for "cannot run here" and passes over: there
    is a GPU, and something is wrong with it or with the engine.
    """

    exit_code = 3


class DeviceMemory(Protocol):
    """What running an engine needs of CUDA.

    Addresses and stream handles are plain integers, as TensorRT takes them; events and graphs
    are opaque. Every call but `active` and `close` belongs inside `with memory.active():`.
    Whatever CUDA refuses is a DeviceError that names what was tried.
    """

    name: str
    no_graphs: str
    """Why it cannot capture CUDA graphs; "" where it can."""

    def active(self) -> AbstractContextManager[None]:
        """Make the device's primary context current in this thread."""
        ...

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes on the device."""
        ...

    def free(self, address: int) -> None:
        """Give back what `allocate` returned."""
        ...

    def pinned(self, count: int) -> NDArray[np.float32]:
        """Return a page-locked host array of shape (count,); no view may outlive it."""
        ...

    def free_pinned(self, array: NDArray[np.float32]) -> None:
        """Give back the very array that `pinned` returned."""
        ...

    def copy_in(self, address: int, array: NDArray[Any], stream: int) -> None:
        """Copy a contiguous host array to the device, in the order of the stream."""
        ...

    def copy_out(self, array: NDArray[np.float32], address: int, stream: int) -> None:
        """Fill a contiguous host array from the device, in the order of the stream."""
        ...

    def new_stream(self) -> int:
        """Return the handle of a stream of its own, never the default one."""
        ...

    def wait(self, stream: int) -> None:
        """Return when all that the stream holds is done."""
        ...

    def free_stream(self, stream: int) -> None:
        """Give back what `new_stream` returned."""
        ...

    def new_event(self) -> Any:
        """Return an event that takes the time."""
        ...

    def record(self, event: Any, stream: int) -> None:
        """Let the device note the time when the stream gets there."""
        ...

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Wait for `end` and return the milliseconds since `start`, on the device's clock."""
        ...

    def free_event(self, event: Any) -> None:
        """Give back what `new_event` returned."""
        ...

    def begin_capture(self, stream: int) -> None:
        """From here on the stream's work is written down, not done."""
        ...

    def end_capture(self, stream: int) -> Any:
        """Return what was written down as a graph that can be launched."""
        ...

    def launch(self, graph: Any, stream: int) -> None:
        """Do what a graph holds, in the order of the stream."""
        ...

    def free_graph(self, graph: Any) -> None:
        """Give back what `end_capture` returned."""
        ...

    def close(self) -> None:
        """Done with it; may be called twice. The primary context stays: others may use it."""
        ...


def memory_named(name: str = "", device: int = 0) -> DeviceMemory:
    """Open the device memory with this name, cuda-python where it is "".

    Raises UserError for another name, MissingDependencyError where its package is missing and
    DeviceError where there is no such GPU.
    """
    chosen = name or next(iter(MEMORIES))
    if chosen not in MEMORIES:
        raise UserError(f'device memory "{name}" is not known.', nearest(name, MEMORIES))
    module = importlib.import_module(MEMORIES[chosen])
    return cast(DeviceMemory, module.open_memory(device))
