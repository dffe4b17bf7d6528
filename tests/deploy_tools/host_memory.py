"""Our device-memory interface over host memory, and a context that adds numbers.

It proves the order of our calls: work on a stream happens only when the stream is waited for, so
a result that is read too early, a copy left out or a wrong address gives wrong numbers; what is
not given back stays in `live`. It is no stand-in for CUDA or TensorRT and proves nothing about
them: not that they take these arguments, not that they do what their names say.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy_tools.runtimes.device_memory import DeviceError


class HostMemory:
    """`DeviceMemory` on the host. fail_at: the number of the call that is refused, from 1."""

    name = "host"

    def __init__(self, fail_at: int = 0, no_graphs: str = "") -> None:
        self.fail_at, self.no_graphs = fail_at, no_graphs
        self.calls: list[str] = []
        self.live: dict[Any, str] = {}
        self.closed = 0
        self._depth = 0
        self._bytes: dict[int, NDArray[np.float32]] = {}
        self._queue: list[Callable[[], None]] = []
        self._captured: list[Callable[[], None]] | None = None
        self._next = 1000
        self._clock = 0.0

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def call(self, name: str) -> None:
        assert self._depth > 0, f"{name} outside of active()"
        self.calls.append(name)
        if len(self.calls) == self.fail_at:
            raise DeviceError(f"{name} was refused.")

    def enqueue(self, work: Callable[[], None]) -> None:
        """Put work on the stream, or into the graph that is being captured."""
        (self._queue if self._captured is None else self._captured).append(work)

    def at(self, address: int) -> NDArray[np.float32]:
        return self._bytes[address]

    def _new(self, what: str) -> int:
        self.call(f"new {what}")
        self._next += 1
        self.live[self._next] = what
        return self._next

    def _free(self, handle: Any, what: str) -> None:
        assert self.live.pop(handle) == what
        self.call(f"free {what}")

    def allocate(self, size: int) -> int:
        address = self._new("device")
        self._bytes[address] = np.full(size // 4, np.nan, np.float32)
        return address

    def free(self, address: int) -> None:
        assert not self._queue, "memory is freed while the stream has work"
        del self._bytes[address]
        self._free(address, "device")

    def pinned(self, count: int) -> NDArray[np.float32]:
        self.call("new pinned")
        array = np.full(count, np.nan, np.float32)
        self.live[id(array)] = "pinned"
        return array

    def free_pinned(self, array: NDArray[np.float32]) -> None:
        self._free(id(array), "pinned")

    def copy_in(self, address: int, array: NDArray[Any], stream: int) -> None:
        assert self.live[stream] == "stream"
        self.call("copy in")

        def work() -> None:
            self._bytes[address][: array.size] = array

        self.enqueue(work)

    def copy_out(self, array: NDArray[np.float32], address: int, stream: int) -> None:
        assert self.live[stream] == "stream"
        self.call("copy out")

        def work() -> None:
            array[:] = self._bytes[address][: array.size]

        self.enqueue(work)

    def new_stream(self) -> int:
        return self._new("stream")

    def wait(self, stream: int) -> None:
        assert self._captured is None, "a stream that is being captured cannot be waited for"
        assert self.live[stream] == "stream"
        self.call("wait")
        queue, self._queue = self._queue, []
        for work in queue:
            work()
            self._clock += 1.0  # every piece of work takes a millisecond

    def free_stream(self, stream: int) -> None:
        self._free(stream, "stream")

    def new_event(self) -> Any:
        return [self._new("event"), None]

    def record(self, event: Any, stream: int) -> None:
        self.call("record")

        def work() -> None:
            self._clock -= 1.0  # recording takes no time
            event[1] = self._clock + 1.0

        self.enqueue(work)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        self.call("elapsed")
        return float(end[1] - start[1])

    def free_event(self, event: Any) -> None:
        self._free(event[0], "event")

    def begin_capture(self, stream: int) -> None:
        self.call("begin capture")
        self._captured = []

    def end_capture(self, stream: int) -> Any:
        graph, self._captured = self._captured, None
        handle = self._new("graph")
        return (handle, graph)

    def launch(self, graph: Any, stream: int) -> None:
        assert self.live[graph[0]] == "graph"
        self.call("launch")
        for work in graph[1]:
            self.enqueue(work)

    def free_graph(self, graph: Any) -> None:
        self._free(graph[0], "graph")

    def close(self) -> None:
        self.closed += 1


class AddingContext:
    """Stands where TensorRT's context would: logits[n] = (sum of image n, 2 * that)."""

    refuses = ""  # the method that says no

    def __init__(self, memory: HostMemory) -> None:
        self.memory = memory
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, stream_handle: int, /) -> bool:
        assert profile == 0
        assert self.memory.live[stream_handle] == "stream"
        self.memory.call("profile")
        return self.refuses != "profile"

    def set_input_shape(self, name: str, shape: tuple[int, ...], /) -> bool:
        assert name == "input"
        self.memory.call(f"shape {shape[0]}")
        self.shape = shape
        return self.refuses != "shape"

    def get_tensor_shape(self, name: str, /) -> list[int]:
        return {"input": list(self.shape), "logits": [self.shape[0], 2]}[name]

    def set_tensor_address(self, name: str, memory: int, /) -> bool:
        self.memory.call(f"address {name}")
        self.addresses[name] = memory
        return self.refuses != "address"

    def execute_async_v3(self, stream_handle: int, /) -> bool:
        assert self.memory.live[stream_handle] == "stream"
        self.memory.call("execute")
        shape, addresses = self.shape, dict(self.addresses)

        def work() -> None:
            inputs = self.memory.at(addresses["input"])[: math.prod(shape)].reshape(shape)
            sums = inputs.sum(axis=(1, 2, 3))
            outputs = np.stack([sums, 2 * sums], axis=1)
            self.memory.at(addresses["logits"])[: outputs.size] = outputs.reshape(-1)

        self.memory.enqueue(work)
        return self.refuses != "execute"
