"""Both device memories on a real GPU: any CUDA GPU will do, no TensorRT is needed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from deploy_tools.runtimes.device_memory import MEMORIES, DeviceError, DeviceMemory, memory_named
from deploy_tools.runtimes.gpu import Gpu, gpu_state

pytestmark = pytest.mark.gpu

COUNT = 1 << 20


@pytest.fixture(params=list(MEMORIES))
def memory(request: pytest.FixtureRequest, gpu: Gpu) -> Iterator[DeviceMemory]:
    if request.param == "pycuda":
        pytest.importorskip("pycuda.driver", reason="pycuda is not installed", exc_type=ImportError)
    opened = memory_named(request.param)
    yield opened
    opened.close()
    opened.close()


def test_what_goes_in_comes_out(memory: DeviceMemory) -> None:
    with memory.active():
        stream, address = memory.new_stream(), memory.allocate(4 * COUNT)
        first, second = memory.pinned(COUNT), memory.pinned(COUNT)
        first[:] = np.random.default_rng(0).normal(size=COUNT)
        second[:] = 0
        memory.copy_in(address, first[: COUNT // 2], stream)
        memory.copy_out(second[: COUNT // 2], address, stream)
        memory.wait(stream)
        np.testing.assert_array_equal(first[: COUNT // 2], second[: COUNT // 2])
        assert not second[COUNT // 2 :].any()
        memory.free_pinned(second)
        memory.free_pinned(first)
        memory.free(address)
        memory.free_stream(stream)


def test_events_tell_more_time_for_more_copies(memory: DeviceMemory) -> None:
    def elapsed(copies: int) -> float:
        start, end = memory.new_event(), memory.new_event()
        memory.record(start, stream)
        for _ in range(copies):
            memory.copy_in(address, host, stream)
        memory.record(end, stream)
        time = memory.elapsed_ms(start, end)
        memory.free_event(start)
        memory.free_event(end)
        return time

    with memory.active():
        stream, address = memory.new_stream(), memory.allocate(4 * COUNT)
        host = memory.pinned(COUNT)
        host[:] = 1
        elapsed(3)
        assert 0 < elapsed(2) < elapsed(200)
        memory.free_pinned(host)
        memory.free(address)
        memory.free_stream(stream)


def test_a_graph_does_what_was_captured(memory: DeviceMemory) -> None:
    with memory.active():
        stream, address = memory.new_stream(), memory.allocate(4 * COUNT)
        if memory.no_graphs:
            with pytest.raises(DeviceError, match="graphs"):
                memory.begin_capture(stream)
            memory.free(address)
            memory.free_stream(stream)
            return
        first, second = memory.pinned(COUNT), memory.pinned(COUNT)
        first[:], second[:] = 1, 0
        memory.begin_capture(stream)
        memory.copy_in(address, first, stream)
        memory.copy_out(second, address, stream)
        graph = memory.end_capture(stream)
        memory.wait(stream)
        assert not second.any()  # written down, not done
        for value in (2, 3):
            first[:] = value
            memory.launch(graph, stream)
            memory.wait(stream)
            assert (second == value).all()
        memory.free_graph(graph)
        for array in (first, second):
            memory.free_pinned(array)
        memory.free(address)
        memory.free_stream(stream)


def test_more_than_there_is_is_refused_in_words(memory: DeviceMemory, gpu: Gpu) -> None:
    with memory.active(), pytest.raises(DeviceError, match=r"allocating \d+ bytes .*failed"):
        memory.allocate(2 * gpu.memory_bytes)
    with memory.active():  # and the context is still good
        memory.free(memory.allocate(1024))


def test_it_shares_the_context_with_torch(memory: DeviceMemory) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch was built without CUDA")
    tensor = torch.arange(COUNT, dtype=torch.float32, device="cuda")
    torch.cuda.synchronize()
    with memory.active():
        stream, host = memory.new_stream(), memory.pinned(COUNT)
        memory.copy_out(host, tensor.data_ptr(), stream)  # its address means the same here
        memory.wait(stream)
        np.testing.assert_array_equal(host, np.arange(COUNT, dtype=np.float32))
        memory.free_pinned(host)
        memory.free_stream(stream)
    assert float((tensor + 1).sum()) > 0  # torch goes on


def test_the_state_of_the_gpu_is_told(gpu: Gpu) -> None:
    state = gpu_state()
    if not state:
        pytest.skip("nvidia-smi is not here or does not answer (Jetson has none)")
    assert {"clocks.sm", "temperature.gpu", "power.draw"} <= set(state)
