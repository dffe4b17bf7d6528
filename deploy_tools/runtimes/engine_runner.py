"""Runs an execution context of TensorRT: buffers, one stream, order of calls, timing.

It knows TensorRT only as the `Context` protocol and CUDA only as `DeviceMemory`. The tests
drive it over host memory with a small context of their own; on a GPU it has not been run.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deploy_tools.errors import UserError
from deploy_tools.runtimes.device_memory import DeviceError, DeviceMemory

MAX_GRAPHS = 8
"""How many input shapes keep their CUDA graph; the one longest unused is dropped."""

_Shape = tuple[int, ...]


class Context(Protocol):
    """What is used of TensorRT's IExecutionContext."""

    def set_optimization_profile_async(self, profile: int, stream_handle: int, /) -> bool: ...
    def set_input_shape(self, name: str, shape: _Shape, /) -> bool: ...
    def get_tensor_shape(self, name: str, /) -> Sequence[int]: ...
    def set_tensor_address(self, name: str, memory: int, /) -> bool: ...
    def execute_async_v3(self, stream_handle: int, /) -> bool: ...


@dataclass(frozen=True)
class EngineIO:
    """An engine's input and its outputs, which are float32, and the shapes of its profile.

    engine: its file, for messages. smallest, largest: input shapes, batch first. dtype: of the
    input, float32 or uint8.
    """

    engine: str
    input_name: str
    output_names: tuple[str, ...]
    smallest: _Shape
    largest: _Shape
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float32))

    def require_inputs(self, inputs: NDArray[Any]) -> None:
        """Refuse inputs that the engine cannot take: UserError that says what it takes.

        A batch below the smallest is none of these: it can be filled up.
        """
        lows, highs = self.smallest, self.largest
        if inputs.ndim == len(highs) and inputs.dtype == self.dtype:
            sizes = zip(lows[1:], inputs.shape[1:], highs[1:], strict=True)
            if all(low <= size <= high for low, size, high in sizes):
                self.require_batch(max(len(inputs), lows[0]) if len(inputs) else 0)
                return
        raise UserError(
            f"{self.engine} takes {self.dtype} of shape {_shown(lows)} to {_shown(highs)} and got "
            f"{inputs.dtype} of shape {_shown(inputs.shape)}.",
        )

    def dtype_of(self, name: str) -> np.dtype[Any]:
        """Return the type of a tensor's values."""
        return self.dtype if name == self.input_name else np.dtype(np.float32)

    def require_batch(self, batch: int) -> None:
        """Refuse a batch size that the profile does not take as it is."""
        low, high = self.smallest[0], self.largest[0]
        if low <= batch <= high:
            return
        if batch < 1:
            hint = "Give it at least one image."
        elif batch > high:
            hint = f"Build it for more: deploy-tools build MODEL.onnx --batch {low}:{high}:{batch}"
        else:
            hint = f"Build it for less: deploy-tools build MODEL.onnx --batch {batch}:{high}:{high}"
        raise UserError(
            f"{self.engine} takes batches of {low} to {high} (its optimization profile) and got "
            f"{batch}.",
            hint,
        )


@dataclass(frozen=True, eq=False)
class EventTimes:
    """Milliseconds of each call on the device's clock, float64 (repeats,).

    compute_ms: from the end of the copy in to the beginning of the copy out. It holds gaps in
    which the GPU waits for the host to launch kernels, which a CUDA graph closes.
    with_copies_ms: the same call with both copies between page-locked memory and the device.
    """

    compute_ms: NDArray[np.float64]
    with_copies_ms: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Buffer:
    """A tensor's memory on both sides, as much as the profile's largest shape needs."""

    host: NDArray[Any]
    device: int

    def part(self, shape: _Shape) -> NDArray[Any]:
        """As much of the host's side as this shape fills, flat."""
        return self.host[: math.prod(shape)]


@dataclass(frozen=True, eq=False)
class _Ready:
    """A context that is set to one input shape.

    outputs: shapes by name. graph: what was captured from it, None without capture.
    """

    context: Context
    inputs: _Shape
    outputs: Mapping[str, _Shape]
    graph: Any = None


class EngineRunner:
    """One engine's buffers on the device, and its calls, one at a time.

    new_context: makes an execution context; the first serves every shape. With `capture` each
    input shape gets a context and a CUDA graph of its own, since a graph holds the state of the
    context it was captured from. log: TensorRT's error lines since it was last asked.
    Raises DeviceError where CUDA or TensorRT refuses; nothing stays allocated then.
    """

    def __init__(
        self,
        memory: DeviceMemory,
        new_context: Callable[[], Context | None],
        io: EngineIO,
        capture: bool = False,
        log: Callable[[], str] = lambda: "",
    ) -> None:
        if capture and memory.no_graphs:
            raise UserError(f"{memory.no_graphs}.", 'Use the "cuda-python" memory for them.')
        self._memory, self._new_context, self._io = memory, new_context, io
        self._capture, self._log = capture, log
        self._graphs: OrderedDict[_Shape, _Ready] = OrderedDict()
        self._lock = Lock()  # the buffers hold one call
        with memory.active(), ExitStack() as stack:
            self._stream = memory.new_stream()
            stack.callback(memory.free_stream, self._stream)
            self._plain = self._shaped(self._made_context(), io.largest)
            sizes = {io.input_name: io.largest, **self._plain.outputs}
            self._buffers = {name: self._buffer(stack, name, size) for name, size in sizes.items()}
            self._bind(self._plain.context)
            self._held: ExitStack | None = stack.pop_all()

    def require_batch(self, batch: int) -> None:
        """Refuse a batch size that cannot be timed: UserError."""
        self._io.require_batch(batch)

    def run(self, inputs: NDArray[Any]) -> tuple[NDArray[np.float32], ...]:
        """Run one batch; returns copies of the outputs, in the order of `io.output_names`.

        A batch below the profile's smallest is filled up with its last image, and what comes of
        the filling is cut off: the engine works as long as for the smallest batch.
        """
        self._io.require_inputs(inputs)
        count = len(inputs)
        filled = max(count, self._io.smallest[0])
        if count < filled:
            inputs = np.concatenate([inputs, np.repeat(inputs[-1:], filled - count, axis=0)])
        with self._lock:
            self._require_open()
            with self._memory.active():
                ready = self._ready(inputs)
                self._copy_in(ready)
                self._enqueue(ready)
                self._copy_out(ready)
                self._memory.wait(self._stream)
                outputs = tuple(
                    np.array(self._buffers[name].part(shape)).reshape(shape)
                    for name, shape in ready.outputs.items()
                )
        return outputs if count == filled else tuple(output[:count] for output in outputs)

    def time_calls(self, inputs: NDArray[Any], repeats: int, warmup: int) -> EventTimes:
        """Time `repeats` calls with events, after `warmup` untimed ones; each ends in a wait.

        Nothing is filled up: UserError for a batch below the profile's smallest, too.
        """
        self._io.require_inputs(inputs)
        self._io.require_batch(len(inputs))
        if repeats < 1 or warmup < 0:
            raise UserError(
                f"repeats must be at least 1 and warmup at least 0, got {repeats} and {warmup}."
            )
        with self._lock:
            self._require_open()
            with self._memory.active(), ExitStack() as stack:
                ready = self._ready(inputs)
                events = []
                for _ in range(4):
                    events.append(self._memory.new_event())
                    stack.callback(self._memory.free_event, events[-1])
                times = [self._timed(ready, events) for _ in range(warmup + repeats)][warmup:]
        compute, with_copies = np.array(times, np.float64).T
        return EventTimes(compute, with_copies)

    def close(self) -> None:
        """Give everything back; may be called twice. What fails is raised when all is tried."""
        with self._lock:
            held, self._held = self._held, None
            if held is None:
                return
            with self._memory.active(), held:
                # Run from the last to the first: wait, graphs, contexts, buffers, stream.
                held.callback(self._drop_contexts)
                for ready in self._graphs.values():
                    held.callback(self._memory.free_graph, ready.graph)
                held.callback(self._memory.wait, self._stream)

    def _require_open(self) -> None:
        if self._held is None:
            raise RuntimeError("the session is closed")

    def _drop_contexts(self) -> None:
        self._graphs.clear()
        del self._plain

    def _buffer(self, stack: ExitStack, name: str, shape: _Shape) -> _Buffer:
        if min(shape, default=1) < 1:
            raise DeviceError(f'{self._io.engine}: the shape of "{name}" is not known: {shape}.')
        size, dtype = math.prod(shape), self._io.dtype_of(name)
        # Page-locked memory is handed out in float32; a smaller type is a view of its beginning.
        whole = self._memory.pinned(-(-size * dtype.itemsize // 4))
        stack.callback(self._memory.free_pinned, whole)
        host = whole.view(dtype)[:size]
        device = self._memory.allocate(host.nbytes)
        stack.callback(self._memory.free, device)
        return _Buffer(host, device)

    def _made_context(self) -> Context:
        context = self._new_context()
        if context is None:
            raise self._refused("made no execution context")
        # Our engines have one profile. Contexts may share it: TensorRT 10 and later allow that.
        if not context.set_optimization_profile_async(0, self._stream):
            raise self._refused("refused the optimization profile")
        return context

    def _shaped(self, context: Context, shape: _Shape) -> _Ready:
        if not context.set_input_shape(self._io.input_name, shape):
            raise self._refused(f"refused the input shape {_shown(shape)}")
        outputs = {name: tuple(context.get_tensor_shape(name)) for name in self._io.output_names}
        return _Ready(context, shape, outputs)

    def _bind(self, context: Context) -> None:
        """Tell a context where its tensors are; they stay there for every shape."""
        for name, buffer in self._buffers.items():
            if not context.set_tensor_address(name, buffer.device):
                raise self._refused(f'refused the address of "{name}"')

    def _ready(self, inputs: NDArray[Any]) -> _Ready:
        """Set a context to the inputs' shape, and put the inputs into page-locked memory."""
        shape = tuple(inputs.shape)
        self._buffers[self._io.input_name].part(shape)[:] = inputs.reshape(-1)
        if self._capture:
            return self._captured(shape)
        if self._plain.inputs != shape:
            self._plain = self._shaped(self._plain.context, shape)
        return self._plain

    def _captured(self, shape: _Shape) -> _Ready:
        """The graph for a shape, captured where there is none yet."""
        if shape not in self._graphs:
            while len(self._graphs) >= MAX_GRAPHS:
                self._memory.free_graph(self._graphs.popitem(last=False)[1].graph)
            context = self._made_context()
            self._bind(context)
            ready = self._shaped(context, shape)
            graph = self._capture_of(ready)
            self._graphs[shape] = _Ready(context, shape, ready.outputs, graph)
        self._graphs.move_to_end(shape)
        return self._graphs[shape]

    def _capture_of(self, ready: _Ready) -> Any:
        # TensorRT does what a new shape calls for in its first run, and that cannot be captured.
        self._enqueue(ready)
        self._memory.wait(self._stream)
        self._memory.begin_capture(self._stream)
        try:
            self._enqueue(ready)
        except BaseException:
            self._abandon_capture()
            raise
        return self._memory.end_capture(self._stream)

    def _abandon_capture(self) -> None:
        """A stream left capturing can do nothing else, not even be waited for."""
        try:
            self._memory.free_graph(self._memory.end_capture(self._stream))
        except DeviceError:
            return  # why the capture failed is told; that it cannot be ended well follows from it

    def _enqueue(self, ready: _Ready) -> None:
        if ready.graph is not None:
            self._memory.launch(ready.graph, self._stream)
        elif not ready.context.execute_async_v3(self._stream):
            raise self._refused(f"could not run the input shape {_shown(ready.inputs)}")

    def _copy_in(self, ready: _Ready) -> None:
        buffer = self._buffers[self._io.input_name]
        self._memory.copy_in(buffer.device, buffer.part(ready.inputs), self._stream)

    def _copy_out(self, ready: _Ready) -> None:
        for name, shape in ready.outputs.items():
            buffer = self._buffers[name]
            self._memory.copy_out(buffer.part(shape), buffer.device, self._stream)

    def _timed(self, ready: _Ready, events: Sequence[Any]) -> tuple[float, float]:
        begin, copied, done, end = events
        steps = ((begin, self._copy_in), (copied, self._enqueue), (done, self._copy_out))
        for event, step in steps:
            self._memory.record(event, self._stream)
            step(ready)
        self._memory.record(end, self._stream)
        self._memory.wait(self._stream)
        return self._memory.elapsed_ms(copied, done), self._memory.elapsed_ms(begin, end)

    def _refused(self, what: str) -> DeviceError:
        said = self._log()
        return DeviceError(f"{self._io.engine}: TensorRT {what}{f': {said}' if said else '.'}")


def _shown(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
