"""The runner's order of calls, its limits and what it gives back, over host memory.

See `host_memory` for what that does and does not prove.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from host_memory import AddingContext, HostMemory
from numpy.typing import NDArray

from deploy_tools.errors import UserError
from deploy_tools.runtimes import engine_runner
from deploy_tools.runtimes.device_memory import DeviceError
from deploy_tools.runtimes.engine_runner import EngineIO, EngineRunner

IO = EngineIO("model.engine", "input", ("logits",), (2, 1, 3, 3), (6, 1, 3, 3))


def images(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, 1, 3, 3)).astype(np.float32)


def expected(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    sums = inputs.sum(axis=(1, 2, 3))
    return np.stack([sums, 2 * sums], axis=1)


def runner_over(memory: HostMemory, **options: Any) -> EngineRunner:
    return EngineRunner(memory, lambda: AddingContext(memory), IO, **options)


@pytest.fixture(params=[False, True], ids=["plain", "graph"])
def capture(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_batches_of_changing_sizes_give_their_own_results(capture: bool) -> None:
    runner = runner_over(HostMemory(), capture=capture)
    kept = []
    for seed, count in enumerate((6, 2, 3, 3, 6, 5)):
        inputs = images(count, seed)
        (found,) = runner.run(inputs)
        kept.append((found, expected(inputs)))
    for found, wanted in kept:  # at the end: results are copies, not the buffers
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
        assert found.dtype == np.float32


def test_inputs_need_not_be_contiguous() -> None:
    inputs = images(4).transpose(0, 1, 3, 2)
    np.testing.assert_allclose(
        runner_over(HostMemory()).run(inputs)[0], expected(inputs), rtol=1e-6
    )


def test_the_order_of_calls() -> None:
    memory = HostMemory()
    runner = runner_over(memory)
    assert memory.calls == [
        "new stream", "profile", "shape 6", "new pinned", "new device", "new pinned", "new device",
        "address input", "address logits",
    ]  # fmt: skip
    memory.calls.clear()
    runner.run(images(3))
    assert memory.calls == ["shape 3", "copy in", "execute", "copy out", "wait"]
    memory.calls.clear()
    runner.run(images(3))
    assert memory.calls == ["copy in", "execute", "copy out", "wait"]
    memory.calls.clear()
    runner.close()
    assert memory.calls == [
        "wait", "free device", "free pinned", "free device", "free pinned", "free stream",
    ]  # fmt: skip


def test_a_graph_is_captured_once_for_each_shape_after_a_first_run() -> None:
    memory = HostMemory()
    runner = runner_over(memory, capture=True)
    memory.calls.clear()
    runner.run(images(3))
    assert memory.calls == [
        "profile", "address input", "address logits", "shape 3", "execute", "wait", "begin capture",
        "execute", "new graph", "copy in", "launch", "copy out", "wait",
    ]  # fmt: skip
    memory.calls.clear()
    runner.run(images(3))
    assert memory.calls == ["copy in", "launch", "copy out", "wait"]
    runner.run(images(4))
    memory.calls.clear()
    runner.close()
    assert memory.calls[:3] == ["wait", "free graph", "free graph"]
    assert memory.live == {}


def test_old_graphs_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_runner, "MAX_GRAPHS", 2)
    memory = HostMemory()
    runner = runner_over(memory, capture=True)
    for count in (2, 3, 2, 4):  # 3 is the one longest unused when 4 comes
        runner.run(images(count))
        assert list(memory.live.values()).count("graph") <= 2
    memory.calls.clear()
    runner.run(images(2))
    assert "new graph" not in memory.calls
    inputs = images(3, 7)
    np.testing.assert_allclose(runner.run(inputs)[0], expected(inputs), rtol=1e-6)
    assert "new graph" in memory.calls
    runner.close()
    assert memory.live == {}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (images(7), r"batches of 2 to 6 .* got 7\. .*--batch 2:6:7"),
        (images(3).astype(np.float64), "float64 of shape 3x1x3x3"),
        (np.zeros((3, 2, 3, 3), np.float32), "2x1x3x3 to 6x1x3x3 and got float32 of shape 3x2x3x3"),
        (np.zeros((3, 9), np.float32), "shape 3x9"),
        (np.zeros((0, 1, 3, 3), np.float32), r"got 0\. Give it at least one image\.$"),
        (np.zeros((1, 2, 3, 3), np.float32), "shape 1x2x3x3"),
    ],
)
def test_inputs_that_the_profile_does_not_take(inputs: Any, words: str, capture: bool) -> None:
    memory = HostMemory()
    runner = runner_over(memory, capture=capture)
    memory.calls.clear()
    with pytest.raises(UserError, match=words) as caught:
        runner.run(inputs)
    assert "model.engine" in caught.value.message
    assert memory.calls == []  # refused before the device sees anything
    assert runner.run(images(2))[0].shape == (2, 2)


def test_a_batch_below_the_smallest_is_filled_up_and_its_outputs_cut(capture: bool) -> None:
    memory = HostMemory()
    io = EngineIO("model.engine", "input", ("logits",), (5, 1, 3, 3), (6, 1, 3, 3))
    runner = EngineRunner(memory, lambda: AddingContext(memory), io, capture)
    for count in (1, 4, 5, 6, 2):
        inputs = images(count, count)
        (found,) = runner.run(inputs)
        assert found.shape == (count, 2)
        np.testing.assert_allclose(found, expected(inputs), rtol=1e-6)
    assert {call for call in memory.calls if "shape" in call} == {"shape 5", "shape 6"}


def test_a_batch_below_the_smallest_cannot_be_timed() -> None:
    memory = HostMemory()
    runner = runner_over(memory)
    memory.calls.clear()
    words = r"batches of 2 to 6 .* got 1\. Build it for less: .*--batch 1:6:6"
    with pytest.raises(UserError, match=words):
        runner.time_calls(images(1), 1, 0)
    for batch in (0, 1, 7):
        with pytest.raises(UserError, match=f"got {batch}"):
            runner.require_batch(batch)
    runner.require_batch(2)
    runner.require_batch(6)
    assert memory.calls == []


def test_closing_twice_and_using_it_afterwards(capture: bool) -> None:
    memory = HostMemory()
    runner = runner_over(memory, capture=capture)
    runner.run(images(2))
    runner.close()
    assert memory.live == {}
    calls = list(memory.calls)
    runner.close()
    for use in (lambda: runner.run(images(2)), lambda: runner.time_calls(images(2), 1, 0)):
        with pytest.raises(RuntimeError, match="closed"):
            use()
    assert memory.calls == calls


def test_whatever_fails_while_it_is_made_nothing_stays_allocated() -> None:
    memory = HostMemory()
    runner_over(memory)
    calls = len(memory.calls)
    assert calls == 9
    for number in range(1, calls + 1):
        memory = HostMemory(fail_at=number)
        with pytest.raises(DeviceError, match="was refused"):
            runner_over(memory)
        assert memory.live == {}, f"call {number} of making it"


def test_whatever_fails_in_a_call_closing_frees_everything(capture: bool) -> None:
    memory = HostMemory()
    runner = runner_over(memory, capture=capture)
    first = len(memory.calls) + 1
    runner.time_calls(images(3), 2, 1)
    last = len(memory.calls)
    for number in range(first, last + 1):
        memory = HostMemory(fail_at=number)
        runner = runner_over(memory, capture=capture)
        with pytest.raises(DeviceError, match="refused"):
            runner.time_calls(images(3), 2, 1)
        assert "event" not in memory.live.values()
        runner.close()
        assert memory.live == {}, f"call {number}: {memory.calls}"


def test_whatever_fails_in_closing_the_rest_is_given_back() -> None:
    memory = HostMemory()
    runner = runner_over(memory, capture=True)
    runner.run(images(3))
    first = len(memory.calls) + 1
    runner.close()
    for number in range(first + 1, len(memory.calls) + 1):
        memory = HostMemory(fail_at=number)
        runner = runner_over(memory, capture=True)
        runner.run(images(3))
        with pytest.raises(DeviceError, match="free"):
            runner.close()
        assert memory.live == {}
        runner.close()


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("profile", "refused the optimization profile: the log said so"),
        ("shape", "refused the input shape 6x1x3x3: the log said so"),
        ("address", 'refused the address of "input": the log said so'),
        ("execute", "could not run the input shape 3x1x3x3: the log said so"),
        ("make", "made no execution context: the log said so"),
    ],
)
def test_what_tensorrt_refuses_is_told_with_its_own_words(method: str, words: str) -> None:
    memory = HostMemory()

    def context() -> Any:
        made = AddingContext(memory)
        made.refuses = method
        return None if method == "make" else made

    with pytest.raises(DeviceError, match=words) as caught:
        EngineRunner(memory, context, IO, log=lambda: "the log said so").run(images(3))
    assert caught.value.exit_code == 3
    assert method == "execute" or memory.live == {}


def test_a_capture_that_fails_is_ended() -> None:
    memory = HostMemory()
    contexts = [AddingContext(memory), AddingContext(memory), AddingContext(memory)]
    runner = EngineRunner(memory, lambda: contexts.pop(0), IO, capture=True)
    count = 0

    def second_time_no(stream: int) -> bool:
        nonlocal count
        count += 1
        return count == 1

    broken, contexts[0].execute_async_v3 = contexts[0], second_time_no  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match="could not run"):
        runner.run(images(3))
    assert count == 2
    assert "graph" not in memory.live.values()
    del broken
    inputs = images(3)  # the stream is usable again
    np.testing.assert_allclose(runner.run(inputs)[0], expected(inputs), rtol=1e-6)
    runner.close()
    assert memory.live == {}


def test_events_enclose_the_computation_and_the_copies(capture: bool) -> None:
    """On the host every piece of work takes a millisecond: 1 copy in, 1 execution, 1 copy out."""
    memory = HostMemory()
    runner = runner_over(memory, capture=capture)
    runner.run(images(4))
    memory.calls.clear()
    times = runner.time_calls(images(4), repeats=5, warmup=2)
    np.testing.assert_array_equal(times.compute_ms, np.full(5, 1.0))
    np.testing.assert_array_equal(times.with_copies_ms, np.full(5, 3.0))
    done = "launch" if capture else "execute"
    one = ["record", "copy in", "record", done, "record", "copy out", "record", "wait", "elapsed", "elapsed"]  # fmt: skip
    assert memory.calls == ["new event"] * 4 + one * 7 + ["free event"] * 4
    for repeats, warmup in ((0, 0), (1, -1)):
        with pytest.raises(UserError, match="repeats"):
            runner.time_calls(images(4), repeats, warmup)


def test_the_first_calls_are_warm_up_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = HostMemory()
    runner = runner_over(memory)
    readings = iter(float(number) for number in range(100))
    monkeypatch.setattr(memory, "elapsed_ms", lambda start, end: next(readings))
    times = runner.time_calls(images(4), repeats=3, warmup=2)
    np.testing.assert_array_equal(times.compute_ms, [4, 6, 8])
    np.testing.assert_array_equal(times.with_copies_ms, [5, 7, 9])


def test_memory_without_graphs_says_so() -> None:
    memory = HostMemory(no_graphs="this memory cannot capture CUDA graphs")
    with pytest.raises(UserError, match=r'cannot capture CUDA graphs.*"cuda-python"'):
        runner_over(memory, capture=True)
    assert memory.calls == []


def test_an_output_of_unknown_shape_is_refused() -> None:
    memory = HostMemory()

    class Unknown(AddingContext):
        def get_tensor_shape(self, name: str, /) -> list[int]:
            return [-1, 2]

    with pytest.raises(DeviceError, match='"logits" is not known'):
        EngineRunner(memory, lambda: Unknown(memory), IO)
    assert memory.live == {}
